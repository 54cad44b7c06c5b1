// What every program does around a decision. Included after maps.h and decide.h.
#ifndef UM_ACT_H
#define UM_ACT_H

// At the end of one of two ways that read other fields of a context: or clang loads what they have
// in common once, from a computed address, which the verifier does not take.
#define UM_KEEP_APART() asm volatile("" ::: "memory")

UM_APART int um_count_rulings(const struct um_decision* decision) {
  if (!decision) return 0;
  if (decision->rulings > 0) um_count_verdict(&decision->ruling[0]);
  if (decision->rulings > 1) um_count_verdict(&decision->ruling[1]);
  return 0;
}

// The client's next connection goes where this one does. No room is made by forgetting another's.
static __always_inline void um_remember_affinity(const struct um_decision* decision) {
  if (!decision->has_affinity) return;
  struct um_affinity_key key = decision->affinity;
  struct um_affinity last = {.used = um_now(), .backend = decision->backend};
  bpf_map_update_elem(&um_affinities, &key, &last, BPF_ANY);
}

static __always_inline void um_mapped(struct um_address* address, __u32 v4 /* be32 */) {
  address->word[0] = 0;
  address->word[1] = 0;
  address->word[2] = um_be32(0xffff);
  address->word[3] = v4;
}

#endif
