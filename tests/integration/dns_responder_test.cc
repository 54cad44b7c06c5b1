// The responder with real sockets: a workload's queries on one side, name servers on the other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "dns/message.h"
#include "dns/resolve.h"
#include "tests/support/dns_bytes.h"
#include "tests/support/fake_resolver.h"
#include "tests/support/gate.h"
#include "tests/support/proxy_fixture.h"

namespace mesh {
namespace {

namespace bytes = dns_bytes;
using dns::Rcode;
using test::FakeResolver;

constexpr int kPatienceMs = 10'000;

std::string world() {
  std::string many;
  for (int i = 1; i <= 100; ++i) many += (i > 1 ? ", " : "") + ("10.79.0." + std::to_string(i));
  return R"(---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIPs: [10.78.0.1, "fd00:78::1"], ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIPs: [)" +
         many + R"(], ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: web.example.com}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: page}
spec: {address: 10.77.0.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart}
spec: {address: 10.77.0.2}
)";
}

// A client's socket. "nothing": no answer came.
class Asker {
 public:
  // Connected: takes answers from there alone.
  explicit Asker(const SocketAddress& to, bool connected = true)
      : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    at_.sin_family = AF_INET;
    at_.sin_port = htons(to.port);
    std::memcpy(&at_.sin_addr, to.ip.bytes().data() + 12, 4);
    const int buffer = 1 << 20;
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (connected)
      EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&at_), sizeof at_), 0);
  }
  void send(const std::string& query) {
    EXPECT_EQ(::sendto(fd_.get(), query.data(), query.size(), 0, reinterpret_cast<sockaddr*>(&at_),
                       sizeof at_),
              static_cast<ssize_t>(query.size()));
  }
  std::string receive(int patience_ms = kPatienceMs) {
    pollfd waiting{fd_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, patience_ms) != 1) return "nothing";
    char answer[65536];
    sockaddr_in from{};
    socklen_t size = sizeof from;
    const ssize_t n =
        ::recvfrom(fd_.get(), answer, sizeof answer, 0, reinterpret_cast<sockaddr*>(&from), &size);
    EXPECT_EQ(from.sin_addr.s_addr, at_.sin_addr.s_addr);  // musl and others look at it
    EXPECT_EQ(from.sin_port, at_.sin_port);
    return n < 0 ? "an error" : std::string(answer, static_cast<std::size_t>(n));
  }
  std::string ask(const std::string& query) {
    send(query);
    return receive();
  }

 private:
  UniqueFd fd_;
  sockaddr_in at_{};
};

// A client's connection.
class TcpAsker {
 public:
  explicit TcpAsker(const SocketAddress& to)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const timeval patience{kPatienceMs / 1000, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(to.port);
    std::memcpy(&at.sin_addr, to.ip.bytes().data() + 12, 4);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  }
  void send(const std::string& query) {
    const std::string message = bytes::u16(static_cast<unsigned>(query.size())) + query;
    // In two parts: a reader must not rely on getting it at once.
    ::send(fd_.get(), message.data(), 1, MSG_NOSIGNAL);
    ::send(fd_.get(), message.data() + 1, message.size() - 1, MSG_NOSIGNAL);
  }
  // "nothing": the end, or no answer came.
  std::string receive() {
    unsigned char size[2];
    if (::recv(fd_.get(), size, 2, MSG_WAITALL) != 2) return "nothing";
    std::string answer(static_cast<std::size_t>(size[0] << 8 | size[1]), '\0');
    if (::recv(fd_.get(), answer.data(), answer.size(), MSG_WAITALL) !=
        static_cast<ssize_t>(answer.size()))
      return "half an answer";
    return answer;
  }
  // Whatever comes until the end, with the lengths.
  std::string receive_all() {
    std::string all;
    char part[4096];
    for (ssize_t n; (n = ::recv(fd_.get(), part, sizeof part, 0)) > 0;)
      all.append(part, static_cast<std::size_t>(n));
    return all;
  }

 private:
  UniqueFd fd_;
};

// One query a connection.
std::string ask_by_tcp(const SocketAddress& to, const std::string& query) {
  TcpAsker asker(to);
  asker.send(query);
  return asker.receive();
}

std::string about(const std::string& answer) {
  const std::vector<std::uint8_t> wire(answer.begin(), answer.end());
  const auto records = dns::read_records(wire);
  if (!records) return answer;
  std::string text;
  switch (dns::rcode_of(wire)) {
    case Rcode::kNoError:
      break;
    case Rcode::kNoSuchName:
      text = "no such name";
      break;
    case Rcode::kServerFailure:
      text = "failure";
      break;
    default:
      text = "error " + std::to_string(static_cast<int>(dns::rcode_of(wire)));
  }
  for (const auto& record : *records) {
    if (!text.empty()) text += " ";
    if (const auto* ip = std::get_if<IpAddress>(&record.data)) text += ip->to_string();
    if (const auto* name = std::get_if<std::string>(&record.data)) text += "-> " + *name;
  }
  if (dns::is_truncated(wire)) text += " ...";
  return text;
}

std::string id_of(const std::string& message) { return message.substr(0, 2); }

// An answer to it: one address, kept for `ttl`.
std::string answer_to(const std::string& query, int last = 1, std::uint32_t ttl = 60) {
  return id_of(query) + bytes::u16(0x8180) + bytes::u16(1) + bytes::u16(1) + bytes::u32(0) +
         query.substr(12) +
         bytes::record(bytes::kQuestionName, 1, ttl, bytes::address(192, 0, 2, last));
}

class DnsResponder : public test::ProxyFixture {
 protected:
  // 127.53.0.<slot> stands for the resolver.
  SocketAddress at(std::uint16_t port, int slot, const SocketAddress& resolver) {
    std::lock_guard lock(mutex());
    const IpAddress ip = IpAddress::v4(127, 53, 0, static_cast<std::uint8_t>(slot));
    resolvers()[ip] = resolver;
    return {ip, port};
  }
  double counted(std::string_view result) {
    return metric("undermesh_dns_queries_total", {"\"" + std::string(result) + "\""});
  }
  double eventually_counted(std::string_view result, double expected) {
    return metric_at(expected, "undermesh_dns_queries_total", {"\"" + std::string(result) + "\""});
  }
};

TEST_F(DnsResponder, AnswersNamesOfTheMeshFromTheAddressThatWasAsked) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver([](const auto&) { return std::vector<std::string>{}; });
  const SocketAddress to = at(port, 7, resolver.address());
  const SocketAddress unknown{IpAddress::v4(127, 53, 0, 9), port};
  for (const auto& where : {to, unknown}) {
    Asker asker(where);
    EXPECT_EQ(about(asker.ask(bytes::query("reviews", 1))), "10.78.0.1");
    EXPECT_EQ(about(asker.ask(bytes::query("ReViews.Default.svc.CLUSTER.local", 28))),
              "fd00:78::1");
    EXPECT_EQ(about(asker.ask(bytes::query("reviews", 16))), "");
    EXPECT_EQ(about(ask_by_tcp(where, bytes::query("reviews", 1))), "10.78.0.1");
  }
  EXPECT_TRUE(resolver.seen().empty());
  EXPECT_EQ(counted("answered"), 8);
}

TEST_F(DnsResponder, AnswersBothFamiliesAskedFromOneSocketAtOnce) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver(
      [](const auto& seen) { return std::vector<std::string>{answer_to(seen.bytes)}; });
  const SocketAddress to = at(port, 7, resolver.address());
  for (const bool connected : {true, false}) {
    Asker asker(to, connected);
    asker.send(bytes::query("reviews", 1, 1));
    asker.send(bytes::query("reviews", 28, 2));
    asker.send(bytes::query("www.example.com", 1, 3));
    std::map<std::string, std::string> answers;
    for (int i = 0; i < 3; ++i) {
      const std::string answer = asker.receive();
      answers[id_of(answer)] = about(answer);
    }
    EXPECT_EQ(answers[bytes::u16(1)], "10.78.0.1");
    EXPECT_EQ(answers[bytes::u16(2)], "fd00:78::1");
    EXPECT_EQ(answers[bytes::u16(3)], "192.0.2.1");
  }
}

TEST_F(DnsResponder, SaysOverTcpWhatADatagramDoesNotTake) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  const SocketAddress to = at(port, 7, {IpAddress::v4(127, 0, 0, 1), 1});
  Asker asker(to);
  const std::string cut = asker.ask(bytes::query("many", 1));
  EXPECT_LE(cut.size(), 512U);
  EXPECT_THAT(about(cut), testing::EndsWith(" ..."));
  const std::string whole = about(ask_by_tcp(to, bytes::query("many", 1)));
  EXPECT_THAT(whole, testing::StartsWith("10.79.0.1 10.79.0.2 "));
  EXPECT_THAT(whole, testing::EndsWith(" 10.79.0.100"));
  const std::string edns = bytes::header(5, 0x100, 1, 0, 0, 1) + bytes::question("many", 1);
  EXPECT_EQ(about(asker.ask(edns + bytes::opt(4096))), whole);
  EXPECT_LE(asker.ask(edns + bytes::opt(700)).size(), 700U);
}

TEST_F(DnsResponder, ForwardsTheRestAndHandsTheAnswerOnAsItIs) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  std::string said;
  FakeResolver resolver([&said](const FakeResolver::Seen& seen) {
    said = id_of(seen.bytes) + bytes::u16(0x87b0) + bytes::u16(1) + bytes::u16(1) + bytes::u16(0) +
           bytes::u16(1) + bytes::question("WWW.example.com", 16) +
           bytes::record(bytes::kQuestionName, 16, 60, "\x03odd") + bytes::opt(4096, true);
    return std::vector<std::string>{said};
  });
  const SocketAddress to = at(port, 7, resolver.address());
  const std::string query = bytes::header(0x0707, 0x0130, 1, 0, 0, 1) +
                            bytes::question("WWW.example.com", 16) +
                            bytes::opt(1400, true,
                                       std::string("\0\x0a\0\x08"
                                                   "12345678",
                                                   12));
  for (const bool by_tcp : {false, true}) {
    const std::string answer = by_tcp ? ask_by_tcp(to, query) : Asker(to).ask(query);
    const FakeResolver::Seen seen = resolver.seen().back();
    EXPECT_EQ(seen.by_tcp, by_tcp);
    EXPECT_EQ(seen.bytes.substr(2), query.substr(2));
    EXPECT_EQ(id_of(answer), id_of(query));
    EXPECT_EQ(answer.substr(2), said.substr(2));
  }
  EXPECT_EQ(resolver.seen().size(), 2U);
  EXPECT_EQ(eventually_counted("forwarded", 2), 2);
}

TEST_F(DnsResponder, HandsOnThatAnAnswerWasCut) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver([](const FakeResolver::Seen& seen) {
    std::string answer = answer_to(seen.bytes);
    if (!seen.by_tcp) answer[2] = static_cast<char>(0x83);
    return std::vector<std::string>{answer};
  });
  const SocketAddress to = at(port, 7, resolver.address());
  for (int i = 0; i < 2; ++i)  // never from the cache
    EXPECT_EQ(about(Asker(to).ask(bytes::query("www.example.com", 1))), "192.0.2.1 ...");
  EXPECT_EQ(about(ask_by_tcp(to, bytes::query("www.example.com", 1))), "192.0.2.1");
  EXPECT_EQ(resolver.seen().size(), 3U);
}

TEST_F(DnsResponder, AsksFromAnotherPortAndUnderAnotherNumberEachTime) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver(
      [](const auto& seen) { return std::vector<std::string>{answer_to(seen.bytes)}; });
  const SocketAddress to = at(port, 7, resolver.address());
  Asker asker(to);
  std::set<std::string> numbers;
  std::set<std::uint16_t> ports;
  constexpr int kQueries = 100;
  for (int i = 0; i < kQueries; ++i)
    ASSERT_EQ(about(asker.ask(bytes::query("n" + std::to_string(i) + ".example", 1, 1))),
              "192.0.2.1");
  for (const auto& seen : resolver.seen()) {
    numbers.insert(id_of(seen.bytes));
    ports.insert(seen.port);
  }
  EXPECT_GT(numbers.size(), kQueries * 9 / 10);
  EXPECT_GT(ports.size(), kQueries * 9 / 10);
}

TEST_F(DnsResponder, KeepsAnswersForTheWorkloadAndResolverThatTheyWereFor) {
  const std::uint16_t page = dns_client("page"), cart = dns_client("cart");
  configure(world());
  const auto answering = [](int last) {
    return [last](const FakeResolver::Seen& seen) {
      return std::vector<std::string>{answer_to(seen.bytes, last)};
    };
  };
  FakeResolver one(answering(1)), other(answering(2));
  const SocketAddress to_one = at(page, 1, one.address()), to_other = at(page, 2, other.address());
  const std::string query = bytes::query("www.example.com", 1, 1);
  Asker asker(to_one);
  EXPECT_EQ(about(asker.ask(query)), "192.0.2.1");
  const std::string again = asker.ask(bytes::query("WWW.Example.com", 1, 0x4242));
  EXPECT_EQ(about(again), "192.0.2.1");
  EXPECT_EQ(id_of(again), bytes::u16(0x4242));
  EXPECT_EQ(again.substr(12, 17), bytes::name("WWW.Example.com"));
  EXPECT_EQ(about(ask_by_tcp(to_one, query)), "192.0.2.1");
  EXPECT_EQ(one.seen().size(), 1U);
  EXPECT_EQ(counted("cached"), 2);
  // Another resolver of the same workload, and the same one of another workload: asked anew.
  EXPECT_EQ(about(Asker(to_other).ask(query)), "192.0.2.2");
  EXPECT_EQ(other.seen().size(), 1U);
  EXPECT_EQ(about(Asker({to_one.ip, cart}).ask(query)), "192.0.2.1");
  EXPECT_EQ(one.seen().size(), 2U);
}

TEST_F(DnsResponder, BelievesNobodyButTheResolverItAsked) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  const UniqueFd spoofer(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  FakeResolver resolver([&spoofer](const FakeResolver::Seen& seen) {
    const std::string lie = answer_to(seen.bytes, 66);
    sockaddr_in victim{};
    victim.sin_family = AF_INET;
    victim.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    victim.sin_port = htons(seen.port);
    // Right in all but where it comes from; then what comes from the right place and is wrong.
    ::sendto(spoofer.get(), lie.data(), lie.size(), 0, reinterpret_cast<sockaddr*>(&victim),
             sizeof victim);
    std::string number = lie, question = lie, query = lie;
    number[1] = static_cast<char>(number[1] ^ 1);
    question[13] = 'x';
    query[2] = 1;
    return std::vector<std::string>{
        number, question, query, "", std::string(5, '\0'), answer_to(seen.bytes, 1)};
  });
  const SocketAddress to = at(port, 7, resolver.address());
  EXPECT_EQ(about(Asker(to).ask(bytes::query("www.example.com", 1))), "192.0.2.1");
  EXPECT_EQ(metric("undermesh_dns_responses_ignored_total"), 5);
}

TEST_F(DnsResponder, AResolverThatDoesNotAnswerHoldsNobodyElseUp) {
  options_.limits.dns_deadline = std::chrono::hours(1);
  options_.limits.dns_in_flight = 3;
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver silent([](const auto&) { return std::vector<std::string>{}; });
  const SocketAddress to = at(port, 7, silent.address());
  Asker asker(to);
  for (int i = 0; i < 5; ++i) asker.send(bytes::query("n" + std::to_string(i) + ".example", 1, 9));
  EXPECT_EQ(about(asker.ask(bytes::query("reviews", 1, 1))), "10.78.0.1");
  EXPECT_EQ(eventually_counted("over_limit", 2), 2);
  EXPECT_TRUE(eventually([&] { return silent.seen().size() == 3; }));
  on_main([this] { proxy_->revoke(workload_id("page")); });
  EXPECT_EQ(eventually_counted("unanswered", 3), 3);
  EXPECT_EQ(metric("undermesh_dns_queries_in_flight"), 0);
  EXPECT_EQ(silent.seen().size(), 3U);  // one each: the client does its own retries
  EXPECT_EQ(asker.receive(0), "nothing");
}

TEST_F(DnsResponder, GivesAResolverUpAtItsDeadline) {
  options_.limits.dns_deadline = std::chrono::milliseconds(20);
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver silent([](const auto&) { return std::vector<std::string>{}; });
  Asker asker(at(port, 7, silent.address()));
  asker.send(bytes::query("www.example.com", 1));
  EXPECT_EQ(eventually_counted("unanswered", 1), 1);
  EXPECT_EQ(metric("undermesh_dns_queries_in_flight"), 0);
}

TEST_F(DnsResponder, SaysAtOnceThatAResolverCannotBeAsked) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  SocketAddress closed;
  {
    FakeResolver gone([](const auto&) { return std::vector<std::string>{}; });
    closed = gone.address();
  }
  const SocketAddress to = at(port, 7, closed);
  EXPECT_EQ(about(Asker(to).ask(bytes::query("www.example.com", 1))), "failure");
  EXPECT_EQ(about(ask_by_tcp(to, bytes::query("www.example.com", 1))), "failure");
  EXPECT_EQ(eventually_counted("failed", 2), 2);
}

TEST_F(DnsResponder, DropsWhatNothingRedirectedAndWhatIsNoQuery) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  const SocketAddress nobody{IpAddress::v4(127, 0, 0, 1), port};
  Asker asker(nobody);
  asker.send(bytes::query("www.example.com", 1));
  for (const std::string& bad :
       {std::string("x"), bytes::query("reviews", 1, 1, 0x8100), bytes::query("reviews", 1) + "",
        bytes::query("reviews", 1).substr(0, 20)})
    asker.send(bad);
  EXPECT_EQ(about(asker.receive()), "10.78.0.1");
  EXPECT_EQ(about(asker.ask(bytes::header(1, 0x100, 0))), "error 1");
  EXPECT_EQ(counted("unknown_resolver"), 1);
  EXPECT_EQ(counted("malformed"), 4);
}

TEST_F(DnsResponder, WhereTheMeshIsTheOnlyResolverOtherNamesDoNotExist) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  const SocketAddress to = at(port, 7, {dns::kMeshResolver, 53});
  Asker asker(to);
  EXPECT_EQ(about(asker.ask(bytes::query("www.example.com", 1))), "no such name");
  EXPECT_EQ(about(asker.ask(bytes::query("x.default.svc.cluster.local", 1))), "no such name");
  EXPECT_EQ(about(asker.ask(bytes::query("reviews", 1))), "10.78.0.1");
  EXPECT_EQ(about(asker.ask(bytes::query("out", 1))), "no such name -> web.example.com");
}

TEST_F(DnsResponder, ResolvesWhatAnExternalNameStandsFor) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver([](const FakeResolver::Seen& seen) {
    const std::string alias =
        bytes::record(bytes::kQuestionName, 5, 60, bytes::name("cdn.example.net"));
    std::string answer =
        id_of(seen.bytes) + bytes::u16(0x8180) + bytes::u16(1) + bytes::u16(2) + bytes::u32(0) +
        seen.bytes.substr(12) + alias +
        bytes::record(bytes::name("cdn.example.net"), 1, 30, bytes::address(192, 0, 2, 9));
    return std::vector<std::string>{answer};
  });
  const SocketAddress to = at(port, 7, resolver.address());
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(about(Asker(to).ask(bytes::query("out.default", 1))),
              "-> web.example.com -> cdn.example.net 192.0.2.9");
  }
  ASSERT_EQ(resolver.seen().size(), 1U);
  EXPECT_EQ(resolver.seen()[0].bytes.substr(2), bytes::query("web.example.com", 1).substr(2));
}

TEST_F(DnsResponder, AsksAnEndpointOfAResolverThatIsAService) {
  FakeResolver resolver(
      [](const auto& seen) { return std::vector<std::string>{answer_to(seen.bytes)}; });
  const std::uint16_t port = dns_client("page");
  const std::string number = std::to_string(resolver.address().port);
  configure(world() + R"(---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {clusterIP: 10.78.0.53, selector: {app: names}, ports: [{name: dns, protocol: UDP, port: 53, targetPort: )" +
            number + R"(}, {name: dns-tcp, port: 53, targetPort: )" + number + R"(}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: names, labels: {app: names}}
spec: {address: 10.77.1.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: names6, labels: {app: names}}
spec: {address: "fd00:77::1", weight: 1000000}
)");
  const SocketAddress to = at(port, 7, {IpAddress::v4(10, 78, 0, 53), 53});
  EXPECT_EQ(about(Asker(to).ask(bytes::query("www.example.com", 1))), "192.0.2.1");
  EXPECT_EQ(about(ask_by_tcp(to, bytes::query("www.example.org", 1))), "192.0.2.1");
  const SocketAddress none = at(port, 8, {IpAddress::v4(10, 78, 0, 1), 53});
  EXPECT_EQ(about(Asker(none).ask(bytes::query("www.example.com", 1))), "failure");
}

TEST_F(DnsResponder, HandsAZoneTransferOnToItsEnd) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver([](const FakeResolver::Seen& seen) {
    return std::vector<std::string>{answer_to(seen.bytes, 1), answer_to(seen.bytes, 2),
                                    answer_to(seen.bytes, 3)};
  });
  const SocketAddress to = at(port, 7, resolver.address());
  const std::string query = bytes::query("example.com", dns::type::kAxfr, 77);
  TcpAsker asker(to);
  asker.send(query);
  const std::string all = asker.receive_all();
  std::string expected;
  for (int last = 1; last <= 3; ++last) {
    const std::string answer = answer_to(query, last);
    expected += bytes::u16(static_cast<unsigned>(answer.size())) + answer;
  }
  EXPECT_EQ(all, expected);
}

TEST_F(DnsResponder, AnswersAThousandQueriesAtOnce) {
  // What is lost between the responder and the resolver stays in flight.
  options_.limits.dns_deadline = std::chrono::hours(1);
  const std::uint16_t port = dns_client("page");
  configure(world());
  FakeResolver resolver(
      [](const auto& seen) { return std::vector<std::string>{answer_to(seen.bytes)}; });
  const SocketAddress to = at(port, 7, resolver.address());
  std::vector<std::unique_ptr<Asker>> askers;
  std::vector<unsigned> left;
  for (unsigned i = 0; i < 1000; ++i) {
    askers.push_back(std::make_unique<Asker>(to));
    left.push_back(i);
  }
  const auto name = [](unsigned i) {
    return i % 2 == 0 ? "reviews" : "n" + std::to_string(i) + ".example";
  };
  // Datagrams may be lost where the machine is busy: the client asks again, as clients do.
  for (int attempt = 0; attempt < 20 && !left.empty(); ++attempt) {
    for (const unsigned i : left) askers[i]->send(bytes::query(name(i), 1, i));
    std::erase_if(left, [&](unsigned i) {
      const std::string answer = askers[i]->receive(attempt == 0 ? 500 : 2000);
      if (answer == "nothing") return false;
      EXPECT_EQ(id_of(answer), bytes::u16(i));
      EXPECT_EQ(about(answer), i % 2 == 0 ? "10.78.0.1" : "192.0.2.1");
      return true;
    });
  }
  EXPECT_TRUE(left.empty()) << left.size() << " unanswered";
  EXPECT_EQ(counted("failed") + counted("unanswered"), 0);
}

// Which resolver each query was for, in the order in which the worker took them.
std::vector<IpAddress>& queries_taken() {
  static std::vector<IpAddress> instance;
  return instance;
}

TEST_F(DnsResponder, AConnectionFullOfQueriesTakesTurnsWithOthers) {
  queries_taken().clear();
  options_.original_resolver = [](int, const IpAddress& at) -> Result<SocketAddress> {
    queries_taken().push_back(at);
    return SocketAddress{dns::kMeshResolver, 53};
  };
  const IpAddress page = IpAddress::v4(127, 53, 0, 1), cart = IpAddress::v4(127, 53, 0, 2);
  TcpAsker from_page({page, dns_client("page")}), from_cart({cart, dns_client("cart")});
  // They wait, in full, until the configuration says who asks.
  constexpr unsigned kQueries = 200;
  for (TcpAsker* asker : {&from_page, &from_cart})
    for (unsigned i = 0; i < kQueries; ++i) asker->send(bytes::query("reviews", 1, i));
  configure(world());
  for (TcpAsker* asker : {&from_page, &from_cart})
    for (unsigned i = 0; i < kQueries; ++i) ASSERT_EQ(about(asker->receive()), "10.78.0.1");
  stop();
  ASSERT_EQ(queries_taken().size(), 2 * kQueries);
  std::size_t run = 0, longest = 0, seen = 0;
  for (std::size_t i = 0; i < queries_taken().size() && seen < kQueries; ++i) {
    if (queries_taken()[i] == queries_taken()[0]) ++seen;
    run = i > 0 && queries_taken()[i] == queries_taken()[i - 1] ? run + 1 : 1;
    longest = std::max(longest, run);
  }
  EXPECT_LE(longest, proxy::Limits::kTurns);
}

TEST_F(DnsResponder, AConnectionEndsWithItsWorkload) {
  const std::uint16_t port = dns_client("page");
  configure(world());
  TcpAsker asker(at(port, 7, {dns::kMeshResolver, 53}));
  asker.send(bytes::query("reviews", 1));
  EXPECT_EQ(about(asker.receive()), "10.78.0.1");
  configure("");  // the connection waits for a query while the workload goes
  asker.send(bytes::query("reviews", 1));
  EXPECT_EQ(asker.receive(), "nothing");
  EXPECT_EQ(counted("answered"), 1);
}

// The heartbeat goes on while requests are under way, and the kernel redirects queries with it.
TEST_F(DnsResponder, AnswersUntilTheLastRequestIsDone) {
  test::Gate draining;
  test::FakeUpstream upstream([&](auto&) {
    draining.wait();
    return test::FakeUpstream::ok("done");
  });
  const std::uint16_t web = client("page", {IpAddress::v4(10, 78, 0, 80), 80});
  Asker asker(at(dns_client("page"), 7, {dns::kMeshResolver, 53}));
  configure(world() + R"(---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.78.0.80, selector: {app: web}, ports: [{name: http, port: 80, targetPort: )" +
            std::to_string(upstream.port()) + R"(}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, labels: {app: web}}
spec: {address: 10.77.1.1}
)");
  auto socket = test::HttpSocket::connect_to(web);
  socket.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  std::thread stopper([&] { stop(); });
  EXPECT_TRUE(eventually([&] { return !test::HttpSocket::try_connect(web); }));
  EXPECT_EQ(about(asker.ask(bytes::query("reviews", 1))), "10.78.0.1");
  draining.open();
  const auto response = socket.read();
  stopper.join();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "done");
}

TEST_F(DnsResponder, WaitsForItsWorkloadAndEndsWithIt) {
  options_.limits.dns_deadline = std::chrono::hours(1);
  FakeResolver silent([](const auto&) { return std::vector<std::string>{}; });
  const std::uint16_t port = dns_client("page");
  const SocketAddress to = at(port, 7, silent.address());
  Asker early(to);
  early.send(bytes::query("reviews", 1));
  configure(world());
  EXPECT_EQ(about(early.receive()), "10.78.0.1");
  early.send(bytes::query("www.example.com", 1));
  ASSERT_TRUE(eventually([&] { return silent.seen().size() == 1; }));
  on_main([this] { proxy_->revoke(workload_id("page")); });
  EXPECT_EQ(metric_at(0, "undermesh_dns_queries_in_flight"), 0);
}

}  // namespace
}  // namespace mesh
