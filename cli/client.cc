#include "client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/unique_fd.h"

namespace mesh::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience{6};  // longer than any answer that meshd holds back

// What Beast needs of a stream, over a blocking descriptor with a deadline for the whole exchange.
class UnixStream {
 public:
  // With something to wait for (`seconds`: how long), a person is told after kPatience.
  UnixStream(UniqueFd fd, Clock::time_point deadline, std::int64_t seconds = 0)
      : fd_(std::move(fd)),
        deadline_(deadline),
        word_at_(seconds == 0 ? deadline : std::min(deadline, Clock::now() + kPatience)),
        seconds_(seconds) {}

  template <class Buffers>
  std::size_t read_some(const Buffers& buffers, error_code& ec) {
    return transfer(buffers, POLLIN, ec, [this](void* data, std::size_t size) {
      return ::recv(fd_.get(), data, size, MSG_DONTWAIT);
    });
  }
  template <class Buffers>
  std::size_t write_some(const Buffers& buffers, error_code& ec) {
    return transfer(buffers, POLLOUT, ec, [this](const void* data, std::size_t size) {
      return ::send(fd_.get(), data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    });
  }
  template <class Buffers>
  std::size_t read_some(const Buffers& buffers) {
    error_code ec;
    std::size_t n = read_some(buffers, ec);
    if (ec) boost::throw_exception(boost::system::system_error(ec));
    return n;
  }
  template <class Buffers>
  std::size_t write_some(const Buffers& buffers) {
    error_code ec;
    std::size_t n = write_some(buffers, ec);
    if (ec) boost::throw_exception(boost::system::system_error(ec));
    return n;
  }

 private:
  template <class Buffers, class Call>
  std::size_t transfer(const Buffers& buffers, short event, error_code& ec, Call call) {
    ec = {};
    for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers);
         ++it) {
      auto buffer = *it;
      if (buffer.size() == 0) continue;
      for (;;) {
        ssize_t n = call(buffer.data(), buffer.size());
        if (n > 0) return static_cast<std::size_t>(n);
        if (n == 0) {
          ec = asio::error::eof;
          return 0;
        }
        if (errno != EAGAIN && errno != EINTR) {
          ec.assign(errno, boost::system::system_category());
          return 0;
        }
        if (!wait(event)) {
          ec = asio::error::timed_out;
          return 0;
        }
      }
    }
    return 0;
  }

  bool wait(short event) {
    pollfd poll{fd_.get(), event, 0};
    for (;;) {
      const auto now = Clock::now();
      if (now >= word_at_ && word_at_ != deadline_) {
        word_at_ = deadline_;
        std::fprintf(stderr, "meshd has not answered yet; waiting up to %lld s\n",
                     static_cast<long long>(seconds_));
      }
      auto left = std::chrono::duration_cast<std::chrono::milliseconds>(word_at_ - now);
      if (left.count() < 0) return false;
      int n = ::poll(&poll, 1, static_cast<int>(std::min<std::int64_t>(left.count() + 1, 1 << 30)));
      if (n > 0) return true;
      if (n < 0 && errno != EINTR) return true;  // the next call reports it
    }
  }

  UniqueFd fd_;
  Clock::time_point deadline_;
  Clock::time_point word_at_;  // deadline_: there is none to say, or it was said
  std::int64_t seconds_;
};

Result<UniqueFd> dial(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error{Errc::invalid_argument,
                 path + ": too long for a socket; choose a shorter --run-dir"};
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error(errno, "socket");
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  if (errno == EACCES)
    return Error{
        Errc::permission,
        path + ": permission denied; run as root, or as a member of the group undermesh to read"};
  return Error{Errc::unavailable, "the mesh is not running: meshd does not answer on " + path +
                                      " (" + std::strerror(errno) +
                                      "); start it with `meshctl up`"};
}

Error broken(const error_code& ec, std::string_view target) {
  if (ec == asio::error::timed_out)
    return {Errc::unavailable,
            "meshd did not answer " + std::string(target) +
                " in time; `meshctl status` and its log (logs/meshd.log in the run "
                "directory) may say why"};
  return {Errc::unavailable,
          "meshd ended the connection (" + ec.message() + "); `meshctl up` starts it again"};
}

Error refusal(unsigned status, std::string_view body) {
  auto reply = api::from_text<api::ErrorReply>(body);
  if (reply) return api::to_error(reply.value());
  return {Errc::internal, "meshd answered with status " + std::to_string(status) +
                              " and no reason; are meshctl and meshd of the same version?"};
}

http::request<http::string_body> make_request(std::string_view method, std::string_view target,
                                              std::string body) {
  http::request<http::string_body> request;
  request.method_string({method.data(), method.size()});
  request.target({target.data(), target.size()});
  request.version(11);
  request.set(http::field::host, "meshd");
  request.set(http::field::connection, "close");
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = std::move(body);
  request.prepare_payload();
  return request;
}

}  // namespace

Result<std::string> Client::request(std::string_view method, std::string_view target,
                                    std::string body, Deadline within) const {
  MESH_TRY(auto fd, dial(run_dir_ + "/" + std::string(api::kSocketName)));
  UnixStream stream(std::move(fd), Clock::now() + within,
                    std::chrono::ceil<std::chrono::seconds>(within).count());
  auto message = make_request(method, target, std::move(body));
  error_code sent;
  http::write(stream, message, sent);  // a refusal may come before the whole body went out
  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(api::kMaxBody);
  error_code ec;
  http::read(stream, buffer, parser, ec);
  if (ec) return broken(sent ? sent : ec, target);
  if (parser.get().result_int() != 200)
    return refusal(parser.get().result_int(), parser.get().body());
  return std::move(parser.get().body());
}

Result<> Client::stream(std::string_view target, const std::function<void()>& on_start,
                        const std::function<bool(std::string_view)>& on_line) const {
  MESH_TRY(auto fd, dial(run_dir_ + "/" + std::string(api::kSocketName)));
  UnixStream stream(std::move(fd), Clock::time_point::max());
  auto message = make_request("GET", target, "");
  error_code ec;
  http::write(stream, message, ec);
  if (ec) return broken(ec, target);
  boost::beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  http::read_header(stream, buffer, parser, ec);
  if (ec) return broken(ec, target);
  if (parser.get().result_int() == 200) on_start();
  std::string pending;
  char chunk[16384];
  while (!parser.is_done()) {
    parser.get().body().data = chunk;
    parser.get().body().size = sizeof chunk;
    http::read_some(stream, buffer, parser, ec);
    if (ec == http::error::need_buffer) ec = {};
    if (ec) return broken(ec, target);
    pending.append(chunk, sizeof chunk - parser.get().body().size);
    if (parser.get().result_int() != 200) continue;
    for (std::size_t end; (end = pending.find('\n')) != std::string::npos;) {
      bool go_on = end == 0 || on_line(std::string_view(pending).substr(0, end));
      pending.erase(0, end + 1);
      if (!go_on) return success();
    }
  }
  if (parser.get().result_int() != 200) return refusal(parser.get().result_int(), pending);
  return success();
}

}  // namespace mesh::cli
