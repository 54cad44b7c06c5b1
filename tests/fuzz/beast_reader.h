// Boost.Beast's parser as the judge of ours: a head that the strict scan accepts is cut as Beast
// cuts it. (Beast alone accepts much that the scan refuses: docs/decisions/0020.)
#pragma once

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/verb.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "http/http1.h"

namespace mesh::http {

template <bool isRequest>
class BeastReader final : public boost::beast::http::basic_parser<isRequest> {
  using ErrorCode = boost::beast::error_code;
  using View = boost::beast::string_view;
  using OptionalLength = boost::optional<std::uint64_t>;

 public:
  std::string_view method, target, reason;
  int status = 0, version = 0;  // 10, 11
  std::vector<std::pair<std::string_view, std::string_view>> fields;

  BeastReader() {
    this->header_limit(~std::uint32_t{0});
    this->body_limit(boost::none);
    this->skip(true);
  }

  // False when Beast refuses the head, or sees another end.
  bool read(std::string_view text) {
    ErrorCode error;
    const std::size_t used = this->put(boost::asio::const_buffer(text.data(), text.size()), error);
    return !error && used == text.size() && this->is_header_done();
  }

 private:
  static std::string_view std_view(View view) { return {view.data(), view.size()}; }

  void on_request_impl(boost::beast::http::verb, View method_text, View target_text, int number,
                       ErrorCode&) override {
    method = std_view(method_text);
    target = std_view(target_text);
    version = number;
  }
  void on_response_impl(int code, View text, int number, ErrorCode&) override {
    status = code;
    reason = std_view(text);
    version = number;
  }
  void on_field_impl(boost::beast::http::field, View name, View value, ErrorCode&) override {
    fields.emplace_back(std_view(name), std_view(value));
  }
  void on_header_impl(ErrorCode&) override {}
  void on_body_init_impl(const OptionalLength&, ErrorCode&) override {}
  std::size_t on_body_impl(View, ErrorCode&) override { return 0; }
  void on_chunk_header_impl(std::uint64_t, View, ErrorCode&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, View, ErrorCode&) override { return 0; }
  void on_finish_impl(ErrorCode&) override {}
};

inline bool is_same(const Fields& ours, const auto& theirs) {
  return std::ranges::equal(ours, theirs, [](const Field& our, const auto& their) {
    return our.name == their.first && our.value == their.second;
  });
}

inline int number_of(Version version) { return version == Version::http10 ? 10 : 11; }

// Proxy-Connection, which no specification has, is not sent on; Beast refuses odd values of it.
inline bool has_proxy_connection(const Fields& fields) {
  return fields.find("proxy-connection") != nullptr;
}

// The method as Beast knows it, and the one that the scan has found.
inline bool is_method_of(std::string_view text, Method method) {
  using boost::beast::http::verb;
  constexpr std::pair<verb, Method> kMethods[] = {
      {verb::get, Method::get},         {verb::head, Method::head},
      {verb::post, Method::post},       {verb::put, Method::put},
      {verb::delete_, Method::delete_}, {verb::options, Method::options},
      {verb::trace, Method::trace},     {verb::patch, Method::patch}};
  const verb known = boost::beast::http::string_to_verb({text.data(), text.size()});
  for (const auto& [theirs, ours] : kMethods) {
    if (theirs == known) return ours == method;
  }
  return method == Method::other;
}

inline bool is_as_beast_reads(std::string_view text, const RequestHead& head) {
  while (text.starts_with("\r\n")) text.remove_prefix(2);  // RFC 9112 2.2; Beast knows none
  BeastReader<true> beast;
  if (!beast.read(text)) return has_proxy_connection(head.fields);
  return beast.method == head.method_text && is_method_of(beast.method, head.method) &&
         beast.target == head.target && beast.version == number_of(head.version) &&
         is_same(head.fields, beast.fields);
}

inline bool is_as_beast_reads(std::string_view text, const ResponseHead& head) {
  BeastReader<false> beast;
  if (!beast.read(text)) return has_proxy_connection(head.fields);
  return beast.status == head.status && beast.reason == head.reason &&
         beast.version == number_of(head.version) && is_same(head.fields, beast.fields);
}

}  // namespace mesh::http
