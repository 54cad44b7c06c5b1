#include "control/admin_server.h"

#include <errno.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/chunk_encode.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/serializer.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <charconv>
#include <memory>
#include <utility>

#include "base/log.h"
#include "control/dumps.h"
#include "feed/channel.h"

namespace mesh::control {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using Local = asio::local::stream_protocol;
using Stream = beast::basic_stream<Local>;
using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;
using namespace std::chrono_literals;

constexpr int kMaxConnections = 64;
constexpr int kMaxOfReaders = 48;
constexpr std::size_t kMaxReaderBody = std::size_t{1} << 20;
constexpr std::size_t kMaxTapBytes = std::size_t{1} << 20;
constexpr auto kExchangeTime = 30s;
constexpr auto kIdleTime = 60s;
constexpr auto kSettleTime = 5s;
constexpr auto kTestTime = 35s;  // the fast path's self-test ends before

constexpr auto use_result = asio::as_tuple(asio::use_awaitable);

Logger log() {
  static const Logger made = logger("admin");
  return made;
}

Response respond(const Request& request, http::status status, const json::object& body) {
  Response response(status, request.version());
  response.set(http::field::content_type, "application/json");
  response.keep_alive(request.keep_alive());
  response.body() = json::serialize(body) + "\n";
  response.prepare_payload();
  return response;
}

template <class Message>
Response respond(const Request& request, const Message& message) {
  return respond(request, http::status::ok, api::to_json(message));
}

Response refuse(const Request& request, const Error& error) {
  api::ErrorReply reply{std::string(to_string(error.code)), error.message};
  return respond(request, static_cast<http::status>(api::http_status(error.code)),
                 api::to_json(reply));
}

std::string query_of(const api::Target& target, const std::string& name) {
  const auto at = target.query.find(name);
  return at == target.query.end() ? std::string() : at->second;
}

// --- one exchange each

// Looks when the node changed.
template <class Done>
asio::awaitable<void> wait_until(Node& node, Done done, std::chrono::milliseconds patience) {
  asio::steady_timer timer(co_await asio::this_coro::executor, patience);
  const auto deadline = timer.expiry();
  const std::uint64_t sink = node.add_change_sink([&timer] { timer.cancel(); });
  while (!done() && Node::Clock::now() < deadline) {
    timer.expires_at(deadline);
    co_await timer.async_wait(use_result);
  }
  node.remove_change_sink(sink);
}

asio::awaitable<Response> change(Node& node, const Request& request, const std::string& path) {
  if (path == "/v1/delete") {
    auto wanted = api::from_text<api::DeleteRequest>(request.body());
    if (!wanted) co_return refuse(request, wanted.error());
    api::ApplyReply reply = node.remove(wanted.value(), Node::Clock::now());
    co_await wait_until(node, [&node] { return node.is_settled(); }, kSettleTime);
    node.add_what_is_due(reply);
    co_return respond(request, reply);
  }
  auto wanted = api::from_text<api::ApplyRequest>(request.body());
  if (!wanted) co_return refuse(request, wanted.error());
  if (path == "/v1/validate") co_return respond(request, node.validate(wanted.value()));
  api::ApplyReply reply = node.apply(wanted.value(), Node::Clock::now());
  if (wanted.value().dry_run) co_return respond(request, reply);
  co_await wait_until(node, [&node] { return node.is_settled(); }, kSettleTime);
  node.add_refusals_of_proxy(reply);
  node.add_what_is_due(reply);
  co_return respond(request, reply);
}

asio::awaitable<Response> workloads(Node& node, const Request& request, const api::Target& target) {
  const std::string wanted = query_of(target, "wait");
  if (wanted.empty()) co_return respond(request, node.workloads());
  const std::string text = query_of(target, "seconds");
  int seconds = 10;
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  const auto slash = std::min(wanted.find('/'), wanted.size());
  const config::ObjectName name{wanted.substr(0, slash),
                                wanted.substr(std::min(slash + 1, wanted.size()))};
  co_await wait_until(
      node,
      [&] {
        const auto status = node.workload(name);
        return status && status->state != "pending";
      },
      std::chrono::seconds(std::clamp(seconds, 0, 60)));
  api::WorkloadList list;
  if (auto status = node.workload(name)) list.workloads.push_back(*std::move(status));
  co_return respond(request, list);
}

asio::awaitable<json::value> proxy_view(Node& node, std::string what) {
  const std::uint64_t question = node.ask_proxy(what);
  if (question == 0) co_return json::value();
  std::optional<json::value> answer;
  co_await wait_until(
      node,
      [&] {
        answer = node.take_answer(question);
        return answer.has_value();
      },
      2s);
  if (!answer) node.forget_question(question);
  co_return answer ? *answer : json::value();
}

asio::awaitable<Response> dump(Node& node, const Request& request, const api::Target& target) {
  const std::string what = target.path.substr(std::string_view("/v1/dump/").size());
  api::Dump table;
  if (what == "routes") {
    table = dump_routes(*node.snapshot());
  } else if (what == "clusters") {
    const json::value body = co_await proxy_view(node, what);
    table = dump_clusters(*node.snapshot());
    merge_rows(table, body, {"cluster"});
  } else if (what == "endpoints") {
    const json::value body = co_await proxy_view(node, what);
    table = dump_endpoints(*node.snapshot());
    merge_rows(table, body, {"cluster", "endpoint"});
  } else if (what == "policies") {
    table = node.policies();
  } else if (what == "flows") {
    auto flows = node.open_flows();
    if (!flows) co_return refuse(request, flows.error());
    table = std::move(flows).value();
  } else if (what == "dns") {
    auto rows = node.look_up(query_of(target, "name"), query_of(target, "from"));
    if (!rows) co_return refuse(request, rows.error());
    table = std::move(rows).value();
  } else {
    co_return refuse(request, Error{Errc::not_found, "no dump '" + what +
                                                         "': one of routes, clusters, endpoints, "
                                                         "policies, dns, flows"});
  }
  table.version = node.version();
  co_return respond(request, table);
}

asio::awaitable<Response> switch_fast_path(Node& node, const Request& request) {
  auto wanted = api::from_text<api::FastPathRequest>(request.body());
  if (!wanted) co_return refuse(request, wanted.error());
  auto switched = node.switch_fast_path(wanted.value().on, Node::Clock::now());
  if (!switched) co_return refuse(request, switched.error());
  co_await wait_until(node, [&node] { return !node.fast_path().is_testing(); }, kTestTime);
  co_return respond(request, node.fast_path().status());
}

asio::awaitable<Response> answer(Node& node, const Request& request, const api::Target& target,
                                 bool is_root) {
  const std::string& path = target.path;
  if (request.method() == http::verb::post) {
    if (path != "/v1/apply" && path != "/v1/delete" && path != "/v1/validate" &&
        path != "/v1/fastpath")
      co_return refuse(request, Error{Errc::not_found, "no such path: POST " + path});
    if (!is_root && path != "/v1/validate")
      co_return refuse(request, Error{Errc::permission, "only root may change the mesh; use sudo"});
    if (path == "/v1/fastpath") co_return co_await switch_fast_path(node, request);
    co_return co_await change(node, request, path);
  }
  if (request.method() != http::verb::get)
    co_return refuse(request, Error{Errc::invalid_argument, "only GET and POST are understood"});
  if (path == "/v1/version")
    co_return respond(request, api::Version{node.program_version(), api::kApiVersion,
                                            static_cast<std::uint64_t>(::getpid())});
  if (path == "/v1/status") co_return respond(request, node.status(Node::Clock::now()));
  if (path == "/v1/objects")
    co_return respond(request, node.objects(query_of(target, "kind"), query_of(target, "namespace"),
                                            query_of(target, "name")));
  if (path == "/v1/fastpath") co_return respond(request, node.fast_path().status());
  if (path == "/v1/workloads") co_return co_await workloads(node, request, target);
  if (path == "/v1/authz") {
    auto checked =
        node.check_authz({query_of(target, "from"), query_of(target, "to"),
                          target.query.contains("namespace") ? query_of(target, "namespace")
                                                             : std::string("default"),
                          query_of(target, "udp") == "1"});
    if (!checked) co_return refuse(request, checked.error());
    co_return respond(request, checked.value());
  }
  if (path.starts_with("/v1/dump/")) co_return co_await dump(node, request, target);
  co_return refuse(request, Error{Errc::not_found, "no such path: GET " + path});
}

// --- tap

struct Tap {
  explicit Tap(const asio::any_io_executor& executor) : wake(executor) {}
  std::string lines;  // not written yet
  bool is_closed = false;
  asio::steady_timer wake;
};

bool names(const std::string& filter, const std::string& value) {
  return filter.empty() || filter == value || value.ends_with("/" + filter) ||
         value.starts_with(filter + ".");
}

bool passes(const api::Target& target, const api::TapEvent& event) {
  const std::string status = query_of(target, "status");
  const std::string code = std::to_string(event.status);
  const bool has_status = status.empty() || status == code ||
                          (status.size() == 3 && status.ends_with("xx") && status[0] == code[0]);
  const std::string destination = query_of(target, "destination");
  return has_status && names(query_of(target, "source"), event.source) &&
         (names(destination, event.destination) || names(destination, event.workload));
}

asio::awaitable<void> watch_for_close(Stream& stream, std::shared_ptr<Tap> tap) {
  co_await stream.socket().async_wait(Local::socket::wait_read, use_result);
  tap->is_closed = true;
  tap->wake.cancel();
}

asio::awaitable<void> write_tap(Stream& stream, const std::shared_ptr<Tap>& tap) {
  while (!tap->is_closed) {
    if (tap->lines.empty()) {
      tap->wake.expires_after(1h);
      co_await tap->wake.async_wait(use_result);
      continue;
    }
    const std::string text = std::exchange(tap->lines, {});
    stream.expires_after(kExchangeTime);
    auto [error, size] =
        co_await asio::async_write(stream, http::make_chunk(asio::buffer(text)), use_result);
    if (error) co_return;
    stream.expires_never();
  }
}

// The head of the answer says that requests are shown from now on: every worker of the proxy has
// answered a question that it got after the tap.
asio::awaitable<void> serve_tap(Stream& stream, Node& node, const Request& request,
                                api::Target target) {
  auto tap = std::make_shared<Tap>(stream.get_executor());
  const std::uint64_t id = node.add_tap([tap, target](const api::TapEvent& event) {
    if (!passes(target, event)) return;
    if (tap->lines.size() >= kMaxTapBytes) return;  // it does not keep up, and misses some
    tap->lines += json::serialize(api::to_json(event)) + "\n";
    tap->wake.cancel();
  });
  co_await proxy_view(node, "clusters");
  http::response<http::empty_body> response(http::status::ok, request.version());
  response.set(http::field::content_type, "application/x-ndjson");
  response.chunked(true);
  http::response_serializer<http::empty_body> serializer(response);
  auto [error, size] = co_await http::async_write_header(stream, serializer, use_result);
  if (error) {
    node.remove_tap(id);
    co_return;
  }
  stream.expires_never();
  // It ends when the socket closes, which is at the latest when this coroutine returns.
  asio::co_spawn(stream.get_executor(), watch_for_close(stream, tap), asio::detached);
  co_await write_tap(stream, tap);
  node.remove_tap(id);
  stream.close();
  while (!tap->is_closed) {
    tap->wake.expires_after(1h);
    co_await tap->wake.async_wait(use_result);
  }
}

// --- one connection

asio::awaitable<void> serve(Local::socket socket, Node& node, bool is_root) {
  Stream stream(std::move(socket));
  beast::flat_buffer buffer;
  while (true) {
    http::request_parser<http::string_body> parser;
    parser.body_limit(is_root ? api::kMaxBody : kMaxReaderBody);
    parser.header_limit(64 * 1024);
    stream.expires_after(kIdleTime);
    auto [error, size] = co_await http::async_read(stream, buffer, parser, use_result);
    if (error == http::error::body_limit) {
      const Response too_long = refuse(
          parser.get(), Error{Errc::exhausted, "the request is too long; root may send more"});
      co_await http::async_write(stream, too_long, use_result);
    }
    if (error) break;
    const Request request = parser.release();
    stream.expires_after(kExchangeTime + 60s);  // `wait` takes up to 60 s
    auto target =
        api::parse_target(std::string_view(request.target().data(), request.target().size()));
    if (target && target.value().path == "/v1/tap" && request.method() == http::verb::get) {
      co_await serve_tap(stream, node, request, target.value());
      co_return;
    }
    const Response response = target ? co_await answer(node, request, target.value(), is_root)
                                     : refuse(request, target.error());
    stream.expires_after(kExchangeTime);
    auto [failed, written] = co_await http::async_write(stream, response, use_result);
    if (failed || !response.keep_alive()) break;
  }
}

}  // namespace

AdminServer::AdminServer(asio::io_context& io, Node& node) : io_(io), node_(node), acceptor_(io) {}

Result<> AdminServer::listen(const std::string& path) {
  const group* readers = ::getgrnam("undermesh");
  MESH_TRY(auto listener, feed::listen_unix(path, readers ? 0660 : 0600));
  if (readers && ::chown(path.c_str(), 0, readers->gr_gid) != 0)
    return errno_error(errno, "chown " + path);
  acceptor_.assign(Local(), listener.release());
  accept();
  return success();
}

void AdminServer::accept() {
  acceptor_.async_accept([this](boost::system::error_code error, Local::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error) {
      log()->warn("a connection could not be accepted error={}", error.message());
    } else {
      const auto uid = feed::peer_uid(socket.native_handle());
      const bool is_root = uid && uid.value() == 0;
      if (connections_ >= kMaxConnections || (!is_root && of_readers_ >= kMaxOfReaders))
        return accept();  // it is closed at once
      ++connections_;
      if (!is_root) ++of_readers_;
      asio::co_spawn(io_, serve(std::move(socket), node_, is_root),
                     [this, is_root](const std::exception_ptr& thrown) {
                       --connections_;
                       if (!is_root) --of_readers_;
                       if (thrown) log()->error("an admin connection ended in an exception");
                     });
    }
    accept();
  });
}

}  // namespace mesh::control
