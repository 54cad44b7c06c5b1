// Every limit of the proxy and its default; docs/operations.md lists them. Heads and trailers:
// http/message.h. Limits of a cluster (connectionPool) come from the configuration.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace mesh::proxy {

struct Limits {
  // Of one client workload on one worker. Above: the connection is reset, the request gets 503
  // (OM). Of buffers, the last goes to a request that gets 503; with none left, who sends one is
  // reset. A request that was let in may take another for its response.
  std::uint32_t connections = 10'000;      // downstream, open at once
  std::uint32_t requests = 4'096;          // in flight at once
  std::size_t buffer_bytes = 512UL << 20;  // in buffers at once

  std::chrono::milliseconds head_timeout{15'000};          // first to last byte of a head: 408
  std::chrono::milliseconds idle_timeout{3'600'000};       // downstream, between requests: closed
  std::chrono::milliseconds stream_idle_timeout{300'000};  // no byte of a body or head moves
  std::chrono::milliseconds half_closed{
      5'000};  // for an answer to begin, once the client's side ended
  std::chrono::milliseconds socket_timeout{5'000};  // for a socket from meshhold: 503 (UF)
  std::chrono::milliseconds linger{1'000};          // for the client to read an answer given early
  std::size_t linger_bytes = 256 * 1024;
  std::chrono::milliseconds drain{5'000};  // shutdown: for requests in flight

  std::uint32_t interim_responses = 1'000;  // 1xx before one response: 502 (UPE)
  // Without a wait, of one connection or listener: requests, connections accepted, writes of a
  // body, 1xx. Then the others of the worker have their turn.
  static constexpr std::uint32_t kTurns = 16;

  // Unconnected sockets kept for each workload, family and protocol: from `stock_first` up to
  // `stock_most` as they are used up.
  std::uint32_t stock_first = 8;
  std::uint32_t stock_most = 64;

  // DNS, of one client workload: queries forwarded and not answered, connections, answers kept.
  std::uint32_t dns_in_flight = 1'024;
  std::uint32_t dns_connections = 128;
  std::size_t dns_cache_entries = 2'048;
  std::size_t dns_cache_bytes = 1UL << 20;
  std::chrono::milliseconds dns_deadline{10'000};  // for the resolver's answer
  std::chrono::milliseconds dns_idle{10'000};      // of a connection of the client

  std::uint32_t trace_permille = 10;  // of traces that begin here: sampled

  // Loopback, link-local and metadata addresses are refused as endpoints from every source, since
  // they would lead back into the client itself; loopback is fit where all is one namespace.
  bool allow_loopback_endpoints = false;
};

}  // namespace mesh::proxy
