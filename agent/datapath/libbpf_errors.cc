#include "datapath/libbpf_errors.h"

#include <bpf/libbpf.h>

#include <cstdarg>
#include <cstdio>
#include <string>

#include "base/log.h"

namespace mesh::datapath {
namespace {

Logger& log() {
  static Logger instance = logger("datapath");
  return instance;
}

// What libbpf said last, for errors: the verifier's log arrives through its print function.
std::string& libbpf_said() {
  thread_local std::string text;
  return text;
}

int on_libbpf_print(libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  va_list again;
  va_copy(again, arguments);
  int length = std::vsnprintf(nullptr, 0, format, again);
  va_end(again);
  if (length <= 0) return 0;
  std::string text(static_cast<std::size_t>(length) + 1, '\0');  // a verifier's log may be long
  (void)std::vsnprintf(text.data(), text.size(), format, arguments);
  text.resize(text.find_last_not_of(std::string_view("\n\0", 2)) + 1);
  log()->debug("libbpf: {}", text);
  if (level == LIBBPF_WARN) libbpf_said().append(text).append("\n");
  return length;
}

}  // namespace

void listen_to_libbpf() { ::libbpf_set_print(on_libbpf_print); }

void forget_libbpf_errors() { libbpf_said().clear(); }

Error libbpf_error(int err, std::string_view what) {
  constexpr std::size_t kTail = 2000;
  Error error = errno_error(err, what);
  std::string& said = libbpf_said();
  if (said.size() > kTail) said.erase(0, said.size() - kTail);
  if (!said.empty()) error.message += "; the kernel said:\n" + said;
  said.clear();
  return error;
}

}  // namespace mesh::datapath
