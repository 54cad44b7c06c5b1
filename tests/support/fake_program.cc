// Stands for meshhold, meshproxy and meshd under meshctl's supervisor: copied to those names, it
// waits to be killed. As meshd it also serves the API (FAKE_MESHD, a script) for as long as it
// lives. A program whose name is in FAKE_BROKEN ends at once with status 7.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

int main(int, char** argv) {
  std::string name = std::string(argv[0]).substr(std::string(argv[0]).rfind('/') + 1);
  const char* broken = std::getenv("FAKE_BROKEN");
  if (broken && name == broken) {
    std::fprintf(stderr, "%s: broken by the test\n", name.c_str());
    return 7;
  }
  const char* script = std::getenv("FAKE_MESHD");
  pid_t self = ::getpid();
  if (name == "meshd" && script && ::fork() == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != self) return 1;
    ::execl("/usr/bin/python3", "python3", script, std::getenv("UNDERMESH_RUN_DIR"), nullptr);
    return 127;
  }
  for (;;) ::pause();
}
