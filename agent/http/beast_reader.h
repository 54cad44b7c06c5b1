// Beast's parser over one complete head that the strict scan has passed: the one that cuts heads
// into fields. Private to http; included by request.cc and response.cc alone.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/verb.hpp>
#include <string_view>

#include "http/chars.h"
#include "http/message.h"

namespace mesh::http {

template <bool isRequest, class Head>
class BeastReader final : public boost::beast::http::basic_parser<isRequest> {
  using ErrorCode = boost::beast::error_code;
  using View = boost::beast::string_view;
  using OptionalLength = boost::optional<std::uint64_t>;

 public:
  // The values that the head's checks need, where there is one.
  std::string_view host, expect, upgrade;

  explicit BeastReader(Head& head) : head_(head) {
    this->header_limit(~std::uint32_t{0});  // the scan has its own
    this->body_limit(boost::none);
    this->skip(true);
  }

  // False when Beast refuses what the scan let pass, or sees another end.
  bool read(std::string_view text) {
    ErrorCode error;
    const std::size_t used = this->put(boost::asio::const_buffer(text.data(), text.size()), error);
    return !error && used == text.size() && this->is_header_done();
  }

 private:
  static std::string_view std_view(View view) { return {view.data(), view.size()}; }

  static Method method_of(boost::beast::http::verb verb) {
    using boost::beast::http::verb;
    switch (verb) {
      case verb::get:
        return Method::get;
      case verb::head:
        return Method::head;
      case verb::post:
        return Method::post;
      case verb::put:
        return Method::put;
      case verb::delete_:
        return Method::delete_;
      case verb::connect:
        return Method::connect;
      case verb::options:
        return Method::options;
      case verb::trace:
        return Method::trace;
      case verb::patch:
        return Method::patch;
      default:
        return Method::other;
    }
  }

  void on_request_impl(boost::beast::http::verb verb, View method, View target, int version,
                       ErrorCode&) override {
    if constexpr (isRequest) {
      head_.method = method_of(verb);
      head_.method_text = std_view(method);
      head_.target = std_view(target);
      head_.version = version == 10 ? Version::http10 : Version::http11;
    }
  }
  void on_response_impl(int status, View reason, int version, ErrorCode&) override {
    if constexpr (!isRequest) {
      head_.status = status;
      head_.reason = std_view(reason);
      head_.version = version == 10 ? Version::http10 : Version::http11;
    }
  }
  void on_field_impl(boost::beast::http::field, View name, View value, ErrorCode&) override {
    const Field field{std_view(name), std_view(value), identify(std_view(name))};
    if (field.id == FieldId::host) host = field.value;
    if (field.id == FieldId::expect) expect = field.value;
    if (field.id == FieldId::upgrade) upgrade = field.value;
    head_.fields.push_back(field);
  }
  void on_header_impl(ErrorCode&) override {}
  void on_body_init_impl(const OptionalLength&, ErrorCode&) override {}
  std::size_t on_body_impl(View, ErrorCode&) override { return 0; }
  void on_chunk_header_impl(std::uint64_t, View, ErrorCode&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, View, ErrorCode&) override { return 0; }
  void on_finish_impl(ErrorCode&) override {}

  Head& head_;
};

}  // namespace mesh::http
