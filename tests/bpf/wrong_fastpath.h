// What wrong_fastpath.bpf.c does wrong: C and C++.
#ifndef UM_WRONG_FASTPATH_H
#define UM_WRONG_FASTPATH_H

enum um_wrong {
  UM_WRONG_NOTHING = 0,
  UM_WRONG_NOBODY_JOINS,
  UM_WRONG_EVERYBODY_JOINS,  // who blocks, too
  UM_WRONG_BY_TCP,           // everything
  UM_WRONG_SAID_MOVED,       // the same, but it is counted as if it went past TCP
  UM_WRONG_NOT_COUNTED,      // what goes past TCP
  UM_WRONG_ALTERED,          // the first byte of a message to the listener's side
  UM_WRONG_ALTERED_BACK,     // the first byte of a message from there
  UM_WRONG_LARGE,            // the first byte of a message of more than 64 KB
  UM_WRONG_IPV6,             // the first byte of a message, there
  UM_WRONG_LOST,             // the first byte of a message
  UM_WRONG_HELD,             // a message stays with its sender for ever
  UM_WRONG_HELD_BY_TCP,      // the same, of what goes by TCP once it is switched off
  UM_WRONG_REFUSED,          // what is sent after the other side has ended
  UM_WRONG_UNBOUNDED,        // what may wait at a receiver
  UM_WRONG_IN_TURNS,         // while something waits, each second message goes by TCP
  UM_WRONG_NEVER_OFF,        // the switch is not looked at
};

#endif
