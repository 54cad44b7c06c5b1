#include "proxy/metrics_server.h"

#include <fcntl.h>

#include <utility>
#include <vector>

#include "base/log.h"
#include "http/http1.h"
#include "telemetry/prometheus.h"

namespace mesh::proxy {

namespace {

using namespace std::chrono_literals;

constexpr std::size_t kMostConnections = 32;
constexpr std::size_t kMostHead = 16 * 1024;
constexpr auto kIdle = 60s;
constexpr auto kWrite = 10s;

}  // namespace

MetricsServer::MetricsServer(net::Reactor& reactor, Write write)
    : reactor_(reactor), write_(std::move(write)), scope_(reactor), group_(reactor) {}

void MetricsServer::add_listener(const ListenerId& id, UniqueFd fd) {
  if (listeners_.contains(id)) return;
  if (!net::set_non_blocking(fd.get())) return;
  auto listener = net::Listener::adopt(reactor_, std::move(fd));
  if (!listener) {
    logger("proxy")->error("metrics are not served address={} error={}", id.address.to_string(),
                           listener.error().message);
    return;
  }
  auto serving = std::make_unique<Serving>(scope_);
  serving->listener = std::move(listener).value();
  Serving& added = *serving;
  listeners_.emplace(id, std::move(serving));
  group_.spawn(accept_all(added));
}

void MetricsServer::remove_listener(const ListenerId& id) {
  if (const auto found = listeners_.find(id); found != listeners_.end()) {
    found->second->scope.cancel();
    ending_.push_back(std::move(found->second));
    listeners_.erase(found);
  }
}

std::vector<ListenerId> MetricsServer::listeners() const {
  std::vector<ListenerId> result;
  for (const auto& [id, serving] : listeners_) result.push_back(id);
  return result;
}

UniqueFd MetricsServer::duplicate_listener(const ListenerId& id) const {
  const auto found = listeners_.find(id);
  if (found == listeners_.end()) return {};
  return UniqueFd(::fcntl(found->second->listener->fd(), F_DUPFD_CLOEXEC, 3));
}

net::Task<> MetricsServer::close() {
  scope_.cancel();
  co_await group_.wait();
}

net::Task<> MetricsServer::accept_all(Serving& serving) {
  while (!serving.scope.is_cancelled()) {
    auto fd = co_await serving.listener->accept(serving.scope);
    if (serving.scope.is_cancelled()) break;
    if (!fd) {
      (void)co_await net::sleep_for(serving.scope, 100ms);
    } else if (connections_ < kMostConnections) {
      group_.spawn(serve(std::move(fd).value()));
    }
  }
  // One or the other destroys `serving`; the same listener may have been added anew meanwhile.
  std::erase_if(ending_, [&](auto& ending) { return ending.get() == &serving; });
  std::erase_if(listeners_, [&](auto& entry) { return entry.second.get() == &serving; });
}

std::string MetricsServer::respond(std::string_view path, bool is_get, bool keep_alive) {
  std::string body;
  http::LocalResponse response;
  const http::FieldValue type{"content-type", telemetry::kPrometheusContentType};
  response.keep_alive = keep_alive;
  response.status = 200;
  if (!is_get) {
    response.status = 405;
    body = "only GET\n";
  } else if (path == "/metrics" || path == "/stats/prometheus") {
    write_(body);
    response.fields = {&type, 1};
  } else {
    response.status = 404;
    body = "/metrics is here\n";
  }
  response.body = body;
  std::string out;
  http::write_local_response(response, out);
  return out;
}

net::Task<> MetricsServer::serve(UniqueFd fd) {
  auto adopted = net::TcpStream::adopt(reactor_, std::move(fd));
  if (!adopted) co_return;
  auto stream = std::move(adopted).value();
  ++connections_;
  http::RequestHead head;
  http::RequestParser parser;
  std::string input;
  for (bool open = true; open;) {
    net::Scope scope(scope_);
    scope.expires_after(kIdle);
    const auto parsed = parser.parse(input, head);
    if (parsed == http::Parse::need_more && input.size() < kMostHead) {
      char bytes[4096];
      auto read = co_await stream->read_some(bytes, scope);
      if (!read || read.value() == 0) break;
      input.append(bytes, read.value());
      continue;
    }
    // A request with a body is no scrape: answered, and the connection ends.
    const bool valid = parsed == http::Parse::done && !head.body.has_body();
    open = valid && head.keep_alive;
    std::string out = valid ? respond(head.path, head.method == http::Method::get, open)
                            : respond("/", false, false);
    scope.expires_after(kWrite);
    iovec part{out.data(), out.size()};
    if (!co_await stream->write_all({&part, 1}, scope)) break;
    if (valid) input.erase(0, parser.consumed());
    parser.reset();
  }
  --connections_;
}

}  // namespace mesh::proxy
