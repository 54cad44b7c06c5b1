#include "proxy/dns_responder.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "proxy/worker.h"

namespace mesh::proxy {
namespace {

using dns::Bytes;
using dns::Rcode;

constexpr std::size_t kLargestUdpAnswer = 4096;
constexpr std::uint8_t kOpcodeBits = 0x78;
constexpr std::chrono::milliseconds kOutOfMemory{50};  // before the next attempt

std::uint16_t random_number() {
  std::uint16_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) std::abort();  // cannot fail
  return number;
}

bool is_transfer(const dns::Query& query) {
  return query.type == dns::type::kAxfr || query.type == dns::type::kIxfr;
}

// Of a message over TCP: its length, then itself. (RFC 1035 4.2.2)
net::Task<bool> read_exactly(net::Stream& stream, std::span<std::uint8_t> into, net::Scope& scope,
                             net::Clock::duration stall) {
  std::span<char> rest(reinterpret_cast<char*>(into.data()), into.size());
  while (!rest.empty()) {
    auto read = co_await stream.read_some(rest, scope, stall);
    if (!read || read.value() == 0) co_return false;
    rest = rest.subspan(read.value());
  }
  co_return true;
}

net::Task<std::vector<std::uint8_t>> read_message(net::Stream& stream, net::Scope& scope,
                                                  net::Clock::duration stall) {
  std::uint8_t size[2] = {};
  std::vector<std::uint8_t> message;
  if (!co_await read_exactly(stream, size, scope, stall)) co_return message;
  message.resize(static_cast<std::size_t>(size[0]) << 8 | size[1]);
  if (message.size() < dns::kHeaderSize || !co_await read_exactly(stream, message, scope, stall))
    message.clear();
  co_return message;
}

net::Task<bool> write_message(net::Stream& stream, const std::vector<std::uint8_t>& message,
                              net::Scope& scope, net::Clock::duration stall) {
  std::uint8_t size[2] = {static_cast<std::uint8_t>(message.size() >> 8),
                          static_cast<std::uint8_t>(message.size())};
  iovec parts[2] = {{size, sizeof size},
                    {const_cast<std::uint8_t*>(message.data()), message.size()}};
  auto written = co_await stream.write_all(parts, scope, stall);
  co_return written.has_value();
}

}  // namespace

std::string_view to_string(DnsResult result) {
  constexpr std::string_view kNames[kDnsResults] = {"answered",  "denied",           "cached",
                                                    "forwarded", "failed",           "unanswered",
                                                    "malformed", "unknown_resolver", "over_limit"};
  return kNames[static_cast<std::size_t>(result)];
}

struct DnsResponder::InFlight {
  explicit InFlight(DnsResponder& r) : responder(r) {
    ++responder.in_flight_;
    responder.worker_.counters().dns.in_flight.add();
  }
  ~InFlight() {
    --responder.in_flight_;
    responder.worker_.counters().dns.in_flight.subtract();
  }
  InFlight(const InFlight&) = delete;
  DnsResponder& responder;
};

DnsResponder::DnsResponder(Worker& worker, Client& client)
    : worker_(worker),
      client_(client),
      cache_(worker.limits().dns_cache_entries, worker.limits().dns_cache_bytes),
      forwarding_(worker.reactor()) {}

std::size_t DnsResponder::Asked::limit() const {
  return by_tcp ? dns::kMaxMessage : std::min<std::size_t>(query.udp_size, kLargestUdpAnswer);
}

net::Task<> DnsResponder::close() { co_await forwarding_.wait(); }

net::Task<> DnsResponder::serve_datagrams(std::shared_ptr<net::UdpSocket> socket,
                                          net::Scope& scope) {
  const std::span<std::uint8_t> buffer = worker_.datagram();
  std::uint32_t served = 0;
  while (!scope.is_cancelled()) {
    // Queries wait in the socket until the configuration says who asks.
    if (client_.workload() == nullptr) {
      (void)co_await client_.known().wait(scope);
      continue;
    }
    auto datagram = co_await socket->receive(buffer, scope);
    if (scope.is_cancelled()) break;
    if (!datagram) {
      (void)co_await net::sleep_for(scope, kOutOfMemory);
      continue;
    }
    if (client_.workload() == nullptr) continue;
    const Origin origin{socket, datagram.value().peer, datagram.value().local};
    const auto bytes = buffer.first(datagram.value().size);
    auto asked = read({bytes.begin(), bytes.end()}, socket->fd(), origin.local, false);
    if (asked) answer_or_forward(*std::move(asked), origin);
    if (++served % Limits::kTurns == 0) (void)co_await net::yield(scope);
  }
}

void DnsResponder::answer_or_forward(Asked asked, const Origin& origin) {
  if (const auto answer = answer_here(asked)) {
    if (!answer->empty()) (void)origin.socket->send(*answer, origin.peer, origin.local).has_value();
  } else if (in_flight_ >= worker_.limits().dns_in_flight) {
    worker_.counters().dns.add(DnsResult::kOverLimit);
  } else {
    forwarding_.spawn(forward_datagram(std::move(asked), origin));
  }
}

net::Task<> DnsResponder::serve_connection(UniqueFd fd) {
  auto adopted = net::TcpStream::adopt(worker_.reactor(), std::move(fd));
  if (!adopted) co_return;
  const auto stream = std::move(adopted).value();
  const Limits& limits = worker_.limits();
  if (connections_ >= limits.dns_connections) {
    worker_.counters().dns.add(DnsResult::kOverLimit);
    stream->reset_on_close();
    co_return;
  }
  ++connections_;
  net::Scope scope(client_.scope());
  const auto local = net::local_address(stream->fd());
  std::uint32_t served = 0;
  while (local) {
    if (served++ % Limits::kTurns == Limits::kTurns - 1) (void)co_await net::yield(scope);
    Message bytes = co_await read_message(*stream, scope, limits.dns_idle);
    // The workload may have ended during the wait.
    if (bytes.empty() || client_.workload() == nullptr) break;
    auto asked = read(std::move(bytes), stream->fd(), local.value().ip, true);
    if (!asked) break;
    auto answer = answer_here(*asked);
    if (!answer && in_flight_ >= limits.dns_in_flight) {
      worker_.counters().dns.add(DnsResult::kOverLimit);
      break;
    }
    if (!answer && asked->query.is_standard && is_transfer(asked->query)) {
      if (!co_await relay_transfer(*asked, *stream, scope)) break;
      continue;
    }
    if (!answer) answer = co_await forward(*asked, scope);
    if (answer->empty() || !co_await write_message(*stream, *answer, scope, limits.dns_idle)) break;
  }
  --connections_;
}

std::optional<DnsResponder::Asked> DnsResponder::read(Message bytes, int fd, const IpAddress& local,
                                                      bool by_tcp) {
  auto query = dns::parse_query(bytes);
  if (!query || (!by_tcp && bytes.size() > dns::kMaxQuery)) {
    worker_.counters().dns.add(DnsResult::kMalformed);
    return std::nullopt;
  }
  Asked asked{std::move(bytes), *std::move(query), std::nullopt, by_tcp};
  if (auto resolver = worker_.original_resolver(fd, local)) asked.resolver = resolver.value();
  return asked;
}

std::optional<DnsResponder::Message> DnsResponder::answer_here(Asked& asked) {
  DnsCounters& counters = worker_.counters().dns;
  const dns::Query& query = asked.query;
  if (!query.is_standard && (query.flags >> 8 & kOpcodeBits) == 0) {
    counters.add(DnsResult::kMalformed);
    return dns::write_refusal(query, Rcode::kFormatError);
  }
  if (query.is_standard)
    if (auto answer = answer_by_mesh(asked)) return answer;
  if (!asked.resolver) {
    counters.add(DnsResult::kUnknownResolver);
    return Message{};
  }
  if (asked.resolver->ip == dns::kMeshResolver) {
    counters.add(DnsResult::kDenied);
    if (!query.is_standard) return dns::write_refusal(query, Rcode::kNotImplemented);
    dns::Answer none = dns::no_such_name(query.name, 0);
    if (asked.alias) none.records = asked.alias->answer.records;
    return dns::write_answer(query, asked.bytes, none, asked.limit());
  }
  if (asked.alias) return std::nullopt;
  Message cached = from_cache(asked);
  if (cached.empty()) return std::nullopt;
  counters.add(DnsResult::kCached);
  return cached;
}

std::optional<DnsResponder::Message> DnsResponder::answer_by_mesh(Asked& asked) {
  const dns::Query& query = asked.query;
  if (!query.is_plain || query.klass != dns::kClassIn) return std::nullopt;
  auto found = dns::resolve(worker_.view()->snapshot(), client_.workload()->name.ns, query.name,
                            query.type, turn_++);
  if (found.kind == dns::Resolution::Kind::kForeign) return std::nullopt;
  if (query.edns_version != 0) found.answer = {.rcode = Rcode::kBadVersion};
  if (found.kind == dns::Resolution::Kind::kElsewhere && query.edns_version == 0) {
    asked.alias = std::move(found);
    return std::nullopt;
  }
  worker_.counters().dns.add(found.answer.rcode == Rcode::kNoError ? DnsResult::kAnswered
                                                                   : DnsResult::kDenied);
  return dns::write_answer(query, asked.bytes, found.answer, asked.limit());
}

DnsResponder::Message DnsResponder::from_cache(const Asked& asked) {
  if (!asked.query.is_standard || !asked.query.is_cacheable) return {};
  Message found = cache_.find(dns::cache_key(*asked.resolver, asked.query), worker_.reactor().now(),
                              asked.limit());
  if (found.empty()) return {};
  dns::set_id(found, asked.query.id);
  dns::echo_question(found, asked.query, asked.bytes);
  return found;
}

net::Task<> DnsResponder::forward_datagram(Asked asked, Origin origin) {
  net::Scope scope(client_.scope());
  const Message answer = co_await forward(asked, scope);
  if (!answer.empty()) (void)origin.socket->send(answer, origin.peer, origin.local).has_value();
}

net::Task<DnsResponder::Message> DnsResponder::forward(Asked& asked, net::Scope& parent) {
  const InFlight in_flight(*this);
  DnsCounters& counters = worker_.counters().dns;
  net::Scope scope(parent);
  scope.expires_after(worker_.limits().dns_deadline);
  // Of an alias its target is asked for instead.
  Message of_target;
  if (asked.alias) of_target = dns::write_query(asked.query, asked.alias->target);
  Message& bytes = asked.alias ? of_target : asked.bytes;
  dns::Query query = asked.query;
  if (asked.alias) query = dns::parse_query(bytes).value_or(asked.query);
  Message response;
  if (asked.alias && query.is_cacheable)
    response = cache_.find(dns::cache_key(*asked.resolver, query), worker_.reactor().now());
  if (response.empty()) {
    auto answered = co_await ask(*asked.resolver, bytes, query, asked.by_tcp, scope);
    if (!answered) {
      const bool is_late = scope.is_cancelled() || answered.error().code == Errc::timed_out;
      counters.add(is_late ? DnsResult::kUnanswered : DnsResult::kFailed);
      if (is_late) co_return Message{};
      if (!asked.query.is_standard)
        co_return dns::write_refusal(asked.query, Rcode::kServerFailure);
      co_return dns::write_answer(asked.query, asked.bytes,
                                  {.rcode = Rcode::kServerFailure, .is_authoritative = false},
                                  asked.limit());
    }
    response = std::move(answered).value();
    if (query.is_standard && query.is_cacheable)
      cache_.put(dns::cache_key(*asked.resolver, query), response, worker_.reactor().now());
  }
  counters.add(DnsResult::kForwarded);
  co_return finish(asked, std::move(response));
}

// `response` is to the query for the alias's target, where there is an alias.
DnsResponder::Message DnsResponder::finish(const Asked& asked, Message response) const {
  if (!asked.alias) {
    dns::set_id(response, asked.query.id);
    return response;
  }
  dns::Answer answer = asked.alias->answer;
  answer.is_authoritative = false;
  answer.is_cut = dns::is_truncated(response);
  answer.rcode = dns::rcode_of(response);
  auto records = dns::read_records(response);
  if (!records) answer.rcode = Rcode::kServerFailure;
  if (records && !answer.is_cut)
    for (dns::Record& record : *records) answer.records.push_back(std::move(record));
  return dns::write_answer(asked.query, asked.bytes, answer, asked.limit());
}

// Of a resolver that is a Service of the mesh one of its endpoints, by their weights: the kernel
// would translate the address for the mesh's UDP sockets, but not for its TCP ones. nullopt: it has
// none of the address's family now.
std::optional<SocketAddress> DnsResponder::reachable(const SocketAddress& resolver, bool by_tcp) {
  const config::Snapshot& snapshot = worker_.view()->snapshot();
  const auto service = snapshot.service_by_address.find(resolver.ip);
  if (service == snapshot.service_by_address.end()) return resolver;
  const auto cluster =
      snapshot.find_cluster(client_.workload()->name.ns, service->second->host, resolver.port, "",
                            by_tcp ? config::Transport::kTcp : config::Transport::kUdp);
  if (!cluster) return std::nullopt;
  const auto weight_of = [&resolver](const config::Endpoint& endpoint) {
    return endpoint.address.ip.is_v4() == resolver.ip.is_v4() ? std::max(endpoint.weight, 1U) : 0U;
  };
  std::uint32_t total = 0;
  for (const config::Endpoint& endpoint : cluster->endpoints) total += weight_of(endpoint);
  if (total == 0) return std::nullopt;
  std::uint32_t left = worker_.random().below(total);
  for (const config::Endpoint& endpoint : cluster->endpoints) {
    if (left < weight_of(endpoint)) return endpoint.address;
    left -= weight_of(endpoint);
  }
  return std::nullopt;
}

net::Task<Result<DnsResponder::Message>> DnsResponder::ask(const SocketAddress& resolver,
                                                           Message& bytes, const dns::Query& query,
                                                           bool by_tcp, net::Scope& scope) {
  if (client_.workload() == nullptr) co_return Error{Errc::unavailable, "the workload has ended"};
  const auto to = reachable(resolver, by_tcp);
  if (!to) co_return Error{Errc::unavailable, "the resolver's Service has no endpoint"};
  const std::uint16_t number = random_number();
  dns::set_id(bytes, number);
  if (by_tcp) co_return co_await ask_by_tcp(*to, bytes, query, number, scope);
  co_return co_await ask_by_udp(*to, bytes, query, number, scope);
}

net::Task<Result<DnsResponder::Message>> DnsResponder::ask_by_udp(SocketAddress resolver,
                                                                  const Message& bytes,
                                                                  const dns::Query& query,
                                                                  std::uint16_t number,
                                                                  net::Scope& scope) {
  const auto kind = resolver.ip.is_v4() ? SocketKind::kUdp4 : SocketKind::kUdp6;
  MESH_CO_TRY(auto fd, co_await client_.stock(kind).take(scope));
  MESH_CO_TRY(auto socket, net::connect_udp(worker_.reactor(), std::move(fd), resolver));
  MESH_CO_TRY(socket->send(bytes));
  for (std::uint32_t ignored = 0;; ++ignored) {
    if (ignored % Limits::kTurns == Limits::kTurns - 1) (void)co_await net::yield(scope);
    // All share the buffer: it is read before anything else runs.
    MESH_CO_TRY(const auto datagram, co_await socket->receive(worker_.datagram(), scope));
    const Bytes response = worker_.datagram().first(datagram.size);
    if (!datagram.is_cut && dns::is_response(response, query, bytes, number))
      co_return Message(response.begin(), response.end());
    worker_.counters().dns.responses_ignored.add();
  }
}

net::Task<Result<DnsResponder::Message>> DnsResponder::ask_by_tcp(SocketAddress resolver,
                                                                  const Message& bytes,
                                                                  const dns::Query& query,
                                                                  std::uint16_t number,
                                                                  net::Scope& scope) {
  const auto kind = resolver.ip.is_v4() ? SocketKind::kTcp4 : SocketKind::kTcp6;
  const auto idle = worker_.limits().dns_deadline;
  MESH_CO_TRY(auto fd, co_await client_.stock(kind).take(scope));
  MESH_CO_TRY(auto stream,
              co_await net::connect(worker_.reactor(), std::move(fd), resolver, scope));
  if (!co_await write_message(*stream, bytes, scope, idle))
    co_return Error{Errc::reset, "the resolver broke off"};
  for (std::uint32_t ignored = 0;; ++ignored) {
    if (ignored % Limits::kTurns == Limits::kTurns - 1) (void)co_await net::yield(scope);
    Message response = co_await read_message(*stream, scope, idle);
    if (response.empty()) {
      if (auto why = scope.cancelled()) co_return net::cancelled_error(*why);
      co_return Error{Errc::reset, "the resolver broke off"};
    }
    if (dns::is_response(response, query, bytes, number)) co_return std::move(response);
    worker_.counters().dns.responses_ignored.add();
  }
}

// A zone transfer is many messages, and only their reader knows which is the last: so all are
// handed on until one of the two sides ends. False: the client's connection ends, too.
net::Task<bool> DnsResponder::relay_transfer(const Asked& asked, net::TcpStream& client,
                                             net::Scope& scope) {
  const InFlight in_flight(*this);
  const auto idle = worker_.limits().dns_deadline;
  DnsCounters& counters = worker_.counters().dns;
  const auto to = reachable(*asked.resolver, true);
  counters.add(to ? DnsResult::kForwarded : DnsResult::kFailed);
  if (!to) co_return false;
  auto fd =
      co_await client_.stock(to->ip.is_v4() ? SocketKind::kTcp4 : SocketKind::kTcp6).take(scope);
  if (!fd) co_return false;
  net::Scope connecting(scope);
  connecting.expires_after(idle);
  auto stream = co_await net::connect(worker_.reactor(), std::move(fd).value(), *to, connecting);
  if (!stream || !co_await write_message(*stream.value(), asked.bytes, scope, idle))
    co_return false;
  for (std::uint32_t relayed = 0;; ++relayed) {
    if (relayed % Limits::kTurns == Limits::kTurns - 1) (void)co_await net::yield(scope);
    const Message response = co_await read_message(*stream.value(), scope, idle);
    if (response.empty() || !co_await write_message(client, response, scope, idle)) co_return false;
  }
}

}  // namespace mesh::proxy
