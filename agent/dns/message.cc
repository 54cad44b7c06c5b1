#include "dns/message.h"

#include <algorithm>

namespace mesh::dns {
namespace {

constexpr std::uint16_t kQr = 0x8000, kAa = 0x0400, kTc = 0x0200, kRd = 0x0100, kRa = 0x0080,
                        kCd = 0x0010;
constexpr std::uint16_t kOpcode = 0x7800;
constexpr std::uint32_t kDo = 0x8000;
constexpr std::size_t kMaxName = 255;
constexpr std::size_t kOptSize = 11;
constexpr int kMaxJumps = 64;              // of one name; compression needs one a label at most
constexpr std::uint32_t kMaxTtl = 86'400;  // a day; longer ones are kept for so long

std::uint8_t lower(std::uint8_t c) {
  return c >= 'A' && c <= 'Z' ? static_cast<std::uint8_t>(c + 32) : c;
}
bool is_name_byte(std::uint8_t c) { return c > ' ' && c < 0x7f && c != '.' && c != '\\'; }

// Reads on; once something does not fit, everything after it is 0 and ok() is false.
class Reader {
 public:
  Reader(Bytes bytes, std::size_t at) : bytes_(bytes), at_(at), ok_(at <= bytes.size()) {}
  bool ok() const { return ok_; }
  std::size_t at() const { return at_; }
  std::uint16_t u16() {
    if (!has(2)) return 0;
    const auto value = static_cast<std::uint16_t>(bytes_[at_] << 8 | bytes_[at_ + 1]);
    at_ += 2;
    return value;
  }
  std::uint32_t u32() {
    const std::uint32_t high = u16();
    return high << 16 | u16();
  }
  void skip(std::size_t size) {
    if (has(size)) at_ += size;
  }
  // `text`, where given, gets the name in lower case; returns whether the text says it all.
  bool name(std::string* text = nullptr);
  // Past a name, wherever its pointer leads.
  void skip_name();

 private:
  bool has(std::size_t size) {
    ok_ = ok_ && bytes_.size() - at_ >= size;
    return ok_;
  }
  Bytes bytes_;
  std::size_t at_;
  bool ok_;
};

// Every pointer leads to before the one before it, so there is no way round in circles; and they
// are counted, since a message of pointers alone, each record at its top, is walked a record long.
bool Reader::name(std::string* text) {
  std::size_t from = at_, most = at_, length = 0;
  int jumps = 0;
  bool is_plain = true;
  if (text) text->clear();
  while (ok_) {
    ok_ = from < bytes_.size();
    if (!ok_) break;
    const std::uint8_t size = bytes_[from];
    if (size >= 0xc0) {
      ok_ = bytes_.size() - from >= 2;
      if (!ok_) break;
      const std::size_t to = static_cast<std::size_t>(size & 0x3f) << 8 | bytes_[from + 1];
      ok_ = to < most && to >= kHeaderSize && jumps < kMaxJumps;
      if (jumps++ == 0) at_ = from + 2;
      from = most = to;
      continue;
    }
    length += size + 1U;
    ok_ = size < 0x40 && length <= kMaxName && bytes_.size() - from > size;
    if (!ok_) break;
    const Bytes label = bytes_.subspan(from + 1, size);
    from += size + 1U;
    if (size == 0) break;
    is_plain = is_plain && std::ranges::all_of(label, is_name_byte);
    if (!text) continue;
    if (!text->empty()) *text += '.';
    for (const std::uint8_t c : label) *text += static_cast<char>(lower(c));
  }
  if (jumps == 0) at_ = from;
  return ok_ && is_plain;
}

void Reader::skip_name() {
  while (has(1)) {
    const std::uint8_t size = bytes_[at_];
    skip(size >= 0xc0 ? 2U : size + 1U);
    if (size == 0 || size >= 0xc0) return;
  }
}

struct Header {
  std::uint16_t id = 0, flags = 0, questions = 0, answers = 0, authorities = 0, additionals = 0;
  std::size_t records() const { return std::size_t{answers} + authorities + additionals; }
};
Header read_header(Bytes message) {
  Reader in(message, 0);
  Header header;
  for (std::uint16_t* field : {&header.id, &header.flags, &header.questions, &header.answers,
                               &header.authorities, &header.additionals})
    *field = in.u16();
  return header;
}

struct RecordHead {
  std::uint16_t type = 0, klass = 0;
  std::uint32_t ttl = 0;
  std::size_t ttl_at = 0, data_at = 0;
  std::uint16_t data_size = 0;
};
// Of a record after its name; leaves the reader after the record.
RecordHead read_after_name(Reader& in) {
  RecordHead head;
  head.type = in.u16();
  head.klass = in.u16();
  head.ttl_at = in.at();
  head.ttl = in.u32();
  head.data_size = in.u16();
  head.data_at = in.at();
  in.skip(head.data_size);
  return head;
}
RecordHead read_record(Reader& in, std::string* owner = nullptr) {
  in.name(owner);
  return read_after_name(in);
}

bool read_opt(const RecordHead& head, Query& query) {
  if (query.has_edns) return false;
  query.has_edns = true;
  query.udp_size = std::max<std::uint16_t>(head.klass, kPlainUdpSize);
  query.edns_version = static_cast<std::uint8_t>(head.ttl >> 16);
  query.wants_dnssec = (head.ttl & kDo) != 0;
  query.is_cacheable = query.is_cacheable && head.data_size == 0 && query.edns_version == 0;
  return true;
}

class Writer {
 public:
  explicit Writer(std::size_t limit) : limit_(limit) {}
  void u8(std::size_t value) { bytes_.push_back(static_cast<std::uint8_t>(value)); }
  void u16(std::size_t value) {
    u8(value >> 8);
    u8(value);
  }
  void u32(std::uint32_t value) {
    u16(value >> 16);
    u16(value & 0xffff);
  }
  void raw(Bytes bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  // A name that cannot be one is written as the root.
  void name(std::string_view text);
  void record(const Record& record);
  void soa(const Answer& answer);
  void opt(const Query& query, Rcode rcode);
  bool fits() const { return bytes_.size() <= limit_; }
  std::size_t size() const { return bytes_.size(); }
  void cut(std::size_t size) { bytes_.resize(size); }
  void patch(std::size_t at, std::size_t value) {
    bytes_[at] = static_cast<std::uint8_t>(value >> 8);
    bytes_[at + 1] = static_cast<std::uint8_t>(value);
  }
  std::vector<std::uint8_t> take() { return std::move(bytes_); }

 private:
  std::vector<std::uint8_t> bytes_;
  std::size_t limit_;
};

void Writer::name(std::string_view text) {
  if (text.size() + 2 > kMaxName) text = {};
  const std::size_t start = bytes_.size();
  while (!text.empty()) {
    const std::string_view label = text.substr(0, text.find('.'));
    if (label.empty() || label.size() > 63) {
      cut(start);
      break;
    }
    u8(label.size());
    for (const char c : label) u8(static_cast<std::uint8_t>(c));
    text.remove_prefix(std::min(text.size(), label.size() + 1));
  }
  u8(0);
}

void Writer::record(const Record& record) {
  if (record.owner.empty())
    u16(0xc000 | kHeaderSize);  // the question's name
  else
    name(record.owner);
  u16(record.type);
  u16(kClassIn);
  u32(record.ttl);
  const std::size_t size_at = size();
  u16(0);
  if (const auto* ip = std::get_if<IpAddress>(&record.data)) {
    raw(Bytes(ip->bytes()).subspan(record.type == type::kA ? 12 : 0));
  } else if (const auto* target = std::get_if<std::string>(&record.data)) {
    name(*target);
  } else if (const auto* service = std::get_if<Service>(&record.data)) {
    u16(service->priority);
    u16(service->weight);
    u16(service->port);
    name(service->target);
  }
  patch(size_at, size() - size_at - 2);
}

// Refresh, retry and expire are for secondaries, which there are none of.
void Writer::soa(const Answer& answer) {
  name(answer.zone);
  u16(type::kSoa);
  u16(kClassIn);
  u32(answer.negative_ttl);
  const std::size_t size_at = size();
  u16(0);
  name("ns.dns." + answer.zone);
  name("hostmaster." + answer.zone);
  for (const std::uint32_t value : {answer.serial, 7200U, 1800U, 86'400U, answer.negative_ttl})
    u32(value);
  patch(size_at, size() - size_at - 2);
}

void Writer::opt(const Query& query, Rcode rcode) {
  u8(0);
  u16(type::kOpt);
  u16(kOurUdpSize);
  u32((static_cast<std::uint32_t>(rcode) >> 4) << 24 | (query.wants_dnssec ? kDo : 0));
  u16(0);
}

}  // namespace

std::optional<Query> parse_query(Bytes message) {
  if (message.size() < kHeaderSize || message.size() > kMaxMessage) return std::nullopt;
  const Header header = read_header(message);
  if ((header.flags & kQr) != 0) return std::nullopt;
  Query query;
  query.id = header.id;
  query.flags = header.flags;
  if ((header.flags & kOpcode) != 0 || header.questions != 1) return query;
  if (message.size() > kMaxQuery) return std::nullopt;
  Reader in(message, kHeaderSize);
  query.is_plain = in.name(&query.name);
  if (!query.is_plain) query.name.clear();
  query.type = in.u16();
  query.klass = in.u16();
  query.question_size = in.at() - kHeaderSize;
  query.is_cacheable = header.answers == 0 && header.authorities == 0;
  for (std::size_t i = 0; i < header.records() && in.ok(); ++i) {
    const RecordHead head = read_record(in);
    const bool is_additional = i >= header.records() - header.additionals;
    if (!in.ok()) break;
    if (head.type != type::kOpt || !is_additional)
      query.is_cacheable = false;
    else if (!read_opt(head, query))
      return std::nullopt;
  }
  if (!in.ok()) return std::nullopt;
  if (in.at() != message.size()) query.is_cacheable = false;
  query.is_standard = true;
  return query;
}

std::vector<std::uint8_t> write_answer(const Query& query, Bytes query_bytes, const Answer& answer,
                                       std::size_t limit) {
  const std::size_t tail = query.has_edns ? kOptSize : 0;
  Writer out(std::min(limit, kMaxMessage) - tail);
  out.u16(query.id);
  const std::size_t flags_at = out.size();
  std::size_t flags = kQr | (query.flags & (kRd | kCd)) | kRa |
                      (answer.is_authoritative ? kAa : 0) | (answer.is_cut ? kTc : 0) |
                      (static_cast<std::size_t>(answer.rcode) & 0xf);
  out.u16(flags);
  out.u16(1);
  const std::size_t counts_at = out.size();
  for (int i = 0; i < 3; ++i) out.u16(0);
  out.raw(query_bytes.subspan(kHeaderSize, query.question_size));
  std::size_t written = 0, end = out.size();
  const auto keep = [&] {
    if (!out.fits()) {
      out.cut(end);
      flags |= kTc;
      return false;
    }
    end = out.size();
    return true;
  };
  for (const Record& record : answer.records) {
    out.record(record);
    if (!keep()) break;
    ++written;
  }
  bool has_soa = !answer.zone.empty() && (flags & kTc) == 0;
  if (has_soa) {
    out.soa(answer);
    has_soa = keep();
  }
  if (query.has_edns) out.opt(query, answer.rcode);
  out.patch(flags_at, flags);
  out.patch(counts_at, written);
  out.patch(counts_at + 2, has_soa ? 1 : 0);
  out.patch(counts_at + 4, query.has_edns ? 1 : 0);
  return out.take();
}

std::vector<std::uint8_t> write_refusal(const Query& query, Rcode rcode) {
  Writer out(kPlainUdpSize);
  out.u16(query.id);
  out.u16(kQr | (query.flags & (kOpcode | kRd)) | static_cast<std::size_t>(rcode));
  for (int i = 0; i < 4; ++i) out.u16(0);
  return out.take();
}

std::vector<std::uint8_t> write_query(const Query& client, std::string_view name) {
  Writer out(kMaxMessage);
  out.u16(0);
  out.u16(client.flags & (kRd | kCd));
  out.u16(1);
  out.u16(0);
  out.u16(0);
  out.u16(client.has_edns ? 1 : 0);
  out.name(name);
  out.u16(client.type);
  out.u16(kClassIn);
  if (client.has_edns) out.opt(client, Rcode::kNoError);
  return out.take();
}

bool is_response(Bytes response, const Query& query, Bytes query_bytes, std::uint16_t id) {
  if (response.size() < kHeaderSize) return false;
  const Header header = read_header(response);
  if (header.id != id || (header.flags & kQr) == 0 ||
      (header.flags & kOpcode) != (query.flags & kOpcode))
    return false;
  if (!query.is_standard) return true;
  // Who does not understand a query at all may leave its question out.
  if (header.questions == 0) return rcode_of(response) == Rcode::kFormatError;
  if (header.questions != 1 || response.size() < kHeaderSize + query.question_size) return false;
  const Bytes ours = query_bytes.subspan(kHeaderSize, query.question_size);
  const Bytes theirs = response.subspan(kHeaderSize, query.question_size);
  const std::size_t name_size = query.question_size - 4;
  return std::ranges::equal(ours.first(name_size), theirs.first(name_size),
                            [](auto a, auto b) { return lower(a) == lower(b); }) &&
         std::ranges::equal(ours.last(4), theirs.last(4));
}

bool is_truncated(Bytes message) {
  return message.size() >= kHeaderSize && (read_header(message).flags & kTc) != 0;
}

Rcode rcode_of(Bytes message) { return static_cast<Rcode>(read_header(message).flags & 0xf); }

void set_id(std::span<std::uint8_t> message, std::uint16_t id) {
  message[0] = static_cast<std::uint8_t>(id >> 8);
  message[1] = static_cast<std::uint8_t>(id);
}

std::uint16_t id_of(Bytes message) { return read_header(message).id; }

void echo_question(std::span<std::uint8_t> response, const Query& query, Bytes query_bytes) {
  std::ranges::copy(query_bytes.subspan(kHeaderSize, query.question_size),
                    response.begin() + kHeaderSize);
}

std::optional<std::uint32_t> time_to_live(Bytes response) {
  if (response.size() < kHeaderSize) return std::nullopt;
  const Header header = read_header(response);
  const Rcode rcode = rcode_of(response);
  if ((header.flags & kTc) != 0 || header.questions != 1 ||
      (rcode != Rcode::kNoError && rcode != Rcode::kNoSuchName))
    return std::nullopt;
  Reader in(response, kHeaderSize);
  in.name();
  const std::uint16_t asked = in.u16();
  in.u16();
  bool has_answer = false;
  std::optional<std::uint32_t> least, negative;
  for (std::size_t i = 0; i < header.records(); ++i) {
    const RecordHead head = read_record(in);
    if (!in.ok()) return std::nullopt;
    if (head.type == type::kOpt) {
      if (head.ttl >> 24 != 0) return std::nullopt;  // the upper bits of another rcode
      continue;
    }
    // A TTL with the highest bit set is 0. (RFC 2181 8)
    const std::uint32_t ttl = head.ttl >> 31 != 0 ? 0 : std::min(head.ttl, kMaxTtl);
    least = std::min(least.value_or(ttl), ttl);
    const bool in_answer = i < header.answers;
    has_answer =
        has_answer ||
        (in_answer && (head.type == asked || asked == type::kAny || asked == type::kCname));
    if (!in_answer && head.type == type::kSoa && head.data_size >= 4) {
      Reader minimum(response, head.data_at + head.data_size - 4);
      negative = std::min(ttl, minimum.u32());
    }
  }
  if (in.at() != response.size()) return std::nullopt;
  if (rcode == Rcode::kNoError && has_answer) return least;
  if (!negative) return std::nullopt;
  return std::min(*negative, *least);
}

void age(std::span<std::uint8_t> response, std::uint32_t seconds) {
  if (response.size() < kHeaderSize) return;
  const Header header = read_header(response);
  Reader in(response, kHeaderSize);
  for (std::size_t i = 0; i < header.questions; ++i) {
    in.skip_name();
    in.u32();
  }
  for (std::size_t i = 0; i < header.records(); ++i) {
    in.skip_name();
    const RecordHead head = read_after_name(in);
    if (!in.ok()) return;
    if (head.type == type::kOpt) continue;
    const std::uint32_t left = head.ttl > seconds ? head.ttl - seconds : 0;
    for (std::size_t b = 0; b < 4; ++b)
      response[head.ttl_at + b] = static_cast<std::uint8_t>(left >> (24 - 8 * b));
  }
}

std::optional<std::vector<Record>> read_records(Bytes response) {
  if (response.size() < kHeaderSize) return std::nullopt;
  const Header header = read_header(response);
  Reader in(response, kHeaderSize);
  for (std::size_t i = 0; i < header.questions; ++i) {
    in.name();
    in.u32();
  }
  std::vector<Record> records;
  for (std::size_t i = 0; i < header.answers; ++i) {
    Record record;
    const RecordHead head = read_record(in, &record.owner);
    if (!in.ok()) return std::nullopt;
    record.type = head.type;
    record.ttl = head.ttl;
    if (head.klass != kClassIn || record.owner.empty()) continue;
    const Bytes data = response.subspan(head.data_at, head.data_size);
    if (head.type == type::kA && data.size() == 4) {
      record.data = IpAddress::v4(data[0], data[1], data[2], data[3]);
    } else if (head.type == type::kAaaa && data.size() == 16) {
      IpAddress::Bytes bytes;
      std::ranges::copy(data, bytes.begin());
      record.data = IpAddress(bytes);
    } else if (head.type == type::kCname) {
      Reader target(response, head.data_at);
      std::string name;
      if (!target.name(&name) || target.at() != head.data_at + head.data_size) return std::nullopt;
      record.data = std::move(name);
    } else {
      continue;
    }
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace mesh::dns
