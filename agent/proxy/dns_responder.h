// DnsResponder: answers one workload's DNS queries (dns/resolve.h) and forwards what is not the
// mesh's to the resolver that the application asked.
//
// The kernel redirects port 53 to meshhold's sockets in the workload's namespace; which of their
// addresses was reached tells the resolver. A forwarded query goes out of a fresh socket of the
// workload's namespace, so the workload's own policy judges it, from a port of the kernel's choice
// and under a number of our own; one query is sent for each that came, and the client does its own
// retries. Its answer is handed on as it is but for the number. Cached for this workload alone.
// Beyond its limits a query is dropped, as a network does, and counted. One worker's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/counter.h"
#include "dns/cache.h"
#include "dns/message.h"
#include "dns/resolve.h"
#include "net/reactor.h"
#include "net/task.h"
#include "net/tcp.h"
#include "net/udp.h"

namespace mesh::proxy {

class Client;
class Worker;

// What became of the queries, in this order the labels of undermesh_dns_queries_total.
enum class DnsResult : std::uint8_t {
  kAnswered,         // a name of the mesh
  kDenied,           // a name of the mesh that there is not, or nobody else to ask
  kCached,           // forwarded before
  kForwarded,        // the resolver answered
  kFailed,           // it could not be asked: SERVFAIL
  kUnanswered,       // it did not answer in time
  kMalformed,        // dropped, or a format error
  kUnknownResolver,  // nothing had redirected it: dropped
  kOverLimit,        // too many in flight: dropped
};
inline constexpr std::size_t kDnsResults = 9;
std::string_view to_string(DnsResult result);

struct DnsCounters {  // of one worker; any thread reads
  Counter results[kDnsResults];
  Counter in_flight;
  Counter responses_ignored;  // of another number or question than was asked
  void add(DnsResult result) { results[static_cast<std::size_t>(result)].add(); }
};

class DnsResponder {
 public:
  DnsResponder(Worker& worker, Client& client);

  // Serve until `scope` is cancelled; the first yields to others now and then.
  net::Task<> serve_datagrams(std::shared_ptr<net::UdpSocket> socket, net::Scope& scope);
  net::Task<> serve_connection(UniqueFd fd);
  // Waits for what is forwarded; the client's scope is cancelled.
  net::Task<> close();

 private:
  using Message = std::vector<std::uint8_t>;
  struct Asked {
    Message bytes;
    dns::Query query;
    std::optional<SocketAddress> resolver;
    bool by_tcp = false;
    std::size_t limit() const;                  // of the answer
    std::optional<dns::Resolution> alias = {};  // kElsewhere
  };
  struct Origin {
    std::shared_ptr<net::UdpSocket> socket;
    SocketAddress peer;
    IpAddress local;
  };
  struct InFlight;

  std::optional<Asked> read(Message bytes, int fd, const IpAddress& local, bool by_tcp);
  // What can be said without asking: the answer, an empty one (drop it), or nullopt: forward it.
  std::optional<Message> answer_here(Asked& asked);
  std::optional<Message> answer_by_mesh(Asked& asked);
  Message from_cache(const Asked& asked);
  void answer_or_forward(Asked asked, const Origin& origin);
  net::Task<> forward_datagram(Asked asked, Origin origin);
  // Empty: no answer.
  net::Task<Message> forward(Asked& asked, net::Scope& scope);
  // Under a number of our own, which replaces that in `bytes`.
  net::Task<Result<Message>> ask(const SocketAddress& resolver, Message& bytes,
                                 const dns::Query& query, bool by_tcp, net::Scope& scope);
  net::Task<Result<Message>> ask_by_udp(SocketAddress resolver, const Message& bytes,
                                        const dns::Query& query, std::uint16_t number,
                                        net::Scope& scope);
  net::Task<Result<Message>> ask_by_tcp(SocketAddress resolver, const Message& bytes,
                                        const dns::Query& query, std::uint16_t number,
                                        net::Scope& scope);
  net::Task<bool> relay_transfer(const Asked& asked, net::TcpStream& client, net::Scope& scope);
  Message finish(const Asked& asked, Message response) const;
  std::optional<SocketAddress> reachable(const SocketAddress& resolver, bool by_tcp);

  Worker& worker_;
  Client& client_;
  dns::Cache cache_;
  std::uint32_t in_flight_ = 0, connections_ = 0;
  std::uint32_t turn_ = 0;
  net::Group forwarding_;
};

}  // namespace mesh::proxy
