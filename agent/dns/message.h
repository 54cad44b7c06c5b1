// DNS messages: bytes <-> a query, an answer (RFC 1035, 2181, 3596, 6891). Nothing waits here, and
// nothing is trusted: every length is checked, and compressed names only ever point backwards.
//
// What is forwarded stays the bytes that came, so only what must be known is parsed: the question,
// what the client can take, and where the TTLs are. Values; errors are nullopt or false.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/address.h"

namespace mesh::dns {

using Bytes = std::span<const std::uint8_t>;

inline constexpr std::size_t kHeaderSize = 12;
inline constexpr std::size_t kMaxMessage = 65'535;
inline constexpr std::size_t kPlainUdpSize = 512;  // of a client that does not say what it takes
inline constexpr std::size_t kOurUdpSize = 1232;   // what we say that we take
// Of a standard query: a name, an OPT record and signatures; what it costs to read is bounded by
// it.
inline constexpr std::size_t kMaxQuery = 4096;

enum class Rcode : std::uint8_t {
  kNoError = 0,
  kFormatError = 1,
  kServerFailure = 2,
  kNoSuchName = 3,
  kNotImplemented = 4,
  kRefused = 5,
  kBadVersion = 16,  // of EDNS; the upper bits are in the OPT record
};

namespace type {
inline constexpr std::uint16_t kA = 1, kCname = 5, kSoa = 6, kAaaa = 28, kSrv = 33, kOpt = 41,
                               kIxfr = 251, kAxfr = 252, kAny = 255;
}
inline constexpr std::uint16_t kClassIn = 1;

struct Query {
  std::uint16_t id = 0;
  std::uint16_t flags = 0;   // the header's, as they came
  bool is_standard = false;  // a QUERY with one question; else nothing below is known
  std::string name;  // lower case, no dot at the end; the root: empty. Empty too where !is_plain
  bool is_plain = false;  // no label has a dot or a byte that a host name never has
  std::uint16_t type = 0, klass = 0;
  std::size_t question_size = 0;  // of the question section, which begins after the header
  bool has_edns = false;
  std::uint8_t edns_version = 0;
  bool wants_dnssec = false;  // DO
  std::uint16_t udp_size = kPlainUdpSize;
  // Nothing in it but the question and an OPT record without options: two alike get one answer.
  bool is_cacheable = false;
};

// nullopt: no query at all (too short, a response), too long, or one that contradicts itself; an
// answer could do harm.
std::optional<Query> parse_query(Bytes message);

struct Service {  // the data of an SRV record
  std::uint16_t priority = 0, weight = 0, port = 0;
  std::string target;
};
struct Record {
  std::string owner;  // lower case; empty: the name that was asked for
  std::uint16_t type = 0;
  std::uint32_t ttl = 0;
  std::variant<IpAddress, std::string, Service> data;  // A and AAAA, CNAME, SRV
};

struct Answer {
  Rcode rcode = Rcode::kNoError;
  bool is_authoritative = true;
  bool is_cut = false;  // there is more, over TCP
  std::vector<Record> records;
  // Of the zone that has nothing more to say; empty: no SOA record.
  std::string zone;
  std::uint32_t serial = 0, negative_ttl = 0;
};

// The question is echoed byte for byte. What does not fit into `limit` is left out, with TC set.
// `query_bytes` must be what `query` was parsed from.
std::vector<std::uint8_t> write_answer(const Query& query, Bytes query_bytes, const Answer& answer,
                                       std::size_t limit);
// An answer without question or records, for a query that is not understood.
std::vector<std::uint8_t> write_refusal(const Query& query, Rcode rcode);
// A question of our own, with what of `client` the answer depends on.
std::vector<std::uint8_t> write_query(const Query& client, std::string_view name);

// Whether `response` is one to `query`, sent under the number `id`.
bool is_response(Bytes response, const Query& query, Bytes query_bytes, std::uint16_t id);
bool is_truncated(Bytes message);
Rcode rcode_of(Bytes message);
void set_id(std::span<std::uint8_t> message, std::uint16_t id);
std::uint16_t id_of(Bytes message);
// Writes the letters of the client's question into a cached answer.
void echo_question(std::span<std::uint8_t> response, const Query& query, Bytes query_bytes);

// How many seconds it may be kept (RFC 2308 for negative ones); nullopt: it may not be.
std::optional<std::uint32_t> time_to_live(Bytes response);
// Takes `seconds` off each TTL of a response that has a time_to_live().
void age(std::span<std::uint8_t> response, std::uint32_t seconds);

// The A, AAAA and CNAME records of its answer section, with whole names.
std::optional<std::vector<Record>> read_records(Bytes response);

}  // namespace mesh::dns
