#include <algorithm>
#include <cstring>

#include "http/chars.h"
#include "http/message.h"

namespace mesh::http {
namespace {

// A path that cannot change: no escape, no backslash, no segment that begins with a dot.
bool is_plain(std::string_view path) {
  char before = 0;
  for (const char c : path) {
    if (c == '%' || c == '\\' || (c == '.' && before == '/')) return false;
    before = c;
  }
  return true;
}

bool decode_unreserved(std::string_view path, std::string& out) {
  out.clear();
  for (std::size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '\\') {
      out.push_back('/');
    } else if (path[i] != '%') {
      out.push_back(path[i]);
    } else {
      if (path.size() - i < 3) return false;
      const int high = hex_digit(path[i + 1]);
      const int low = hex_digit(path[i + 2]);
      if (high < 0 || low < 0 || high + low == 0) return false;
      const char c = static_cast<char>(high << 4 | low);
      if (kUnreserved[c]) {
        out.push_back(c);
      } else {
        out.append(path, i, 3);
      }
      i += 2;
    }
  }
  return true;
}

// RFC 3986 5.2.4, in place: every segment is read before it is overwritten.
void remove_dot_segments(std::string& path) {
  std::size_t out = 0;
  for (std::size_t in = 0; in < path.size();) {  // at a '/'
    const std::size_t end = std::min(path.find('/', in + 1), path.size());
    const std::string_view segment = std::string_view(path).substr(in, end - in);
    if (segment == "/." || segment == "/..") {
      if (segment.size() == 3 && out > 0) out = path.rfind('/', out - 1);
      if (end == path.size()) path[out++] = '/';
    } else {
      std::memmove(path.data() + out, segment.data(), segment.size());
      out += segment.size();
    }
    in = end;
  }
  path.resize(out);
}

}  // namespace

std::optional<std::string_view> normalise_path(std::string_view path, std::string& storage) {
  if (path.empty() || path[0] != '/') return std::nullopt;
  if (is_plain(path)) return path;
  if (!decode_unreserved(path, storage)) return std::nullopt;
  remove_dot_segments(storage);
  return storage;
}

}  // namespace mesh::http
