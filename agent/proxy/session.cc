// One connection from a client: requests in order until one of the two sides ends it.
#include <sys/socket.h>

#include <array>
#include <utility>

#include "base/log.h"
#include "proxy/exchange.h"
#include "proxy/worker.h"

namespace mesh::proxy {

namespace {

enum class Head : std::uint8_t { kParsed, kClosed, kRefused };

enum class First : std::uint8_t { kBytes, kNothing, kEnd, kNoRoom };

// What woke an idle connection.
First read_first_bytes(Downstream& down) {
  if (!down.client.has_buffers()) return First::kNoRoom;
  down.in.acquire(down.worker.buffers(), down.client.buffers);
  const auto read = down.stream->try_read(down.in.space());
  if (read.would_block()) return First::kNothing;
  if (read.error != 0 || read.bytes == 0) return First::kEnd;
  down.in.filled(read.bytes);
  return First::kBytes;
}

// The rest of the head. `refusal` says what to answer where that is not to be.
net::Task<Head> read_head(Downstream& down, Exchange& exchange, Refusal& refusal) {
  http::RequestParser parser;
  const auto deadline = down.worker.reactor().now() + down.worker.limits().head_timeout;
  while (true) {
    switch (parser.parse(down.in.unread(), exchange.head())) {
      case http::Parse::done:
        down.head = down.in.unread().substr(0, parser.consumed());
        down.in.consume(parser.consumed());
        co_return Head::kParsed;
      case http::Parse::error:
        refusal = {.reason = Reason::kBadRequest,
                   .status = parser.error().status,
                   .detail = parser.error().detail};
        co_return Head::kRefused;
      case http::Parse::need_more:
        break;
    }
    const auto space = down.in.space();
    if (space.empty()) {
      refusal = {.reason = Reason::kBadRequest, .status = 431, .detail = "head too large"};
      co_return Head::kRefused;
    }
    auto read =
        co_await down.stream->read_some(space, down.scope, deadline - down.worker.reactor().now());
    if (!read && !down.scope.is_cancelled() && read.error().code == Errc::timed_out) {
      refusal = {.reason = Reason::kHeadTimeout};
      co_return Head::kRefused;
    }
    if (!read || read.value() == 0) co_return Head::kClosed;
    down.in.filled(read.value());
  }
}

// The answer is out, but the client still sends: closing now would reset the connection and could
// take the answer with it. (RFC 9112 9.6)
// Not inlined, as below: its frame would become part of the connection's, idle or not.
[[gnu::noinline]] net::Task<> linger(Downstream& down) {
  net::Scope scope(down.worker.reactor());
  scope.expires_after(down.worker.limits().linger);
  down.stream->shutdown_write();
  if (!down.in.is_held() && !down.client.has_buffers()) co_return;
  down.in.acquire(down.worker.buffers(), down.client.buffers);
  std::size_t dropped = 0;
  while (dropped < down.worker.limits().linger_bytes) {
    down.in.consume(down.in.unread().size());
    auto read = co_await down.stream->read_some(down.in.space(), scope);
    if (!read || read.value() == 0) break;
    down.in.filled(read.value());
    dropped += read.value();
  }
}

// False: nobody to serve; the connection is reset.
bool find_destination(Downstream& down) {
  if (down.is_gateway()) {
    auto local = net::local_address(down.stream->fd());
    down.destination = local ? local.value() : down.via.address;
    return true;
  }
  auto destination = down.worker.original_destination(down.stream->fd());
  if (!destination) {
    down.worker.counters().connections_without_destination.add();
    return false;
  }
  down.destination = destination.value();
  return true;
}

// One request. False: the connection ends.
[[gnu::noinline]] net::Task<bool> serve_request(Downstream& down) {
  auto exchange = down.worker.take_exchange();
  Refusal refusal;
  bool keep = false;
  const Head head = co_await read_head(down, *exchange, refusal);
  if (head == Head::kParsed) {
    down.in.pin();
    keep = co_await exchange->run(down);
    down.in.unpin();
  } else if (head == Head::kRefused) {
    co_await exchange->refuse(down, refusal);
  }
  down.worker.give_back(std::move(exchange));
  if (++down.requests % Limits::kTurns == 0) (void)co_await net::yield(down.scope);
  co_return keep;
}

}  // namespace

net::Task<> serve_connection(Worker& worker, Client& client, ListenerId via, UniqueFd fd) {
  auto stream = net::TcpStream::adopt(worker.reactor(), std::move(fd));
  if (!stream) co_return;
  worker.counters().connections_active.add();
  Downstream down(worker, client, via, std::move(stream).value());
  if (find_destination(down)) {
    // Between requests the connection holds no buffer and no frame but this.
    while (true) {
      if (down.in.is_empty()) {
        down.in.release();
        if (!co_await down.stream->readable(down.scope, worker.limits().idle_timeout)) break;
        const First first = read_first_bytes(down);
        if (first == First::kNothing) continue;
        if (first == First::kEnd) break;
        if (first == First::kNoRoom) {
          worker.counters().requests_refused.add();
          down.stream->reset_on_close();
          break;
        }
      }
      if (!co_await serve_request(down)) break;
    }
    if (down.linger) co_await linger(down);
  } else {
    down.stream->reset_on_close();
  }
  worker.counters().connections_active.subtract();
}

}  // namespace mesh::proxy
