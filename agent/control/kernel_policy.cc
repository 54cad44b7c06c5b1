#include "control/kernel_policy.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "config/policy_parts.h"

namespace mesh::control {
namespace {

using config::Peer;
using config::Snapshot;
using config::Transport;
using config::Workload;
using datapath::ClassId;
using datapath::PolicySet;
using datapath::SetId;
using datapath::State;

constexpr std::pair<Transport, datapath::Transport> kTransports[] = {
    {Transport::kTcp, datapath::Transport::kTcp}, {Transport::kUdp, datapath::Transport::kUdp}};

// --- address blocks

// The blocks that policies name, each once.
class Blocks {
 public:
  Blocks(const std::vector<IpBlock>& named, const std::vector<IpAddress>& node_addresses)
      : node_(node_addresses.begin(), node_addresses.end()) {
    std::set<IpBlock> once;  // however they are written
    for (const IpBlock& block : named) once.insert({first_address(block), block.prefix_length});
    all_.assign(once.begin(), once.end());
  }
  const std::vector<IpBlock>& all() const { return all_; }

  bool is_this_node(const IpAddress& address) const { return node_.contains(address); }

  // The names of those that an address is in.
  std::string around(const IpAddress& address) const {
    std::string names;
    for (const IpBlock& block : all_)
      if (block.contains(address)) names += block.to_string() + ",";
    return names;
  }
  // An address of the block that is in no smaller one; none: these cover it.
  std::optional<IpAddress> own_address(const IpBlock& block) const {
    return outside(block, [&](const IpBlock& other) {
      return other != block && other.prefix_length >= block.prefix_length;
    });
  }
  // An address that is in none.
  std::optional<IpAddress> outside_all() const {
    const auto any = [](const IpBlock&) { return true; };
    for (const char* whole : {"0.0.0.0/0", "::/0"})
      if (auto found = outside(IpBlock::parse(whole).value(), any)) return found;
    return std::nullopt;
  }

 private:
  // The first address of `within` that is in none of the blocks that count, and not this node's,
  // which policies treat as such.
  template <class Counts>
  std::optional<IpAddress> outside(const IpBlock& within, Counts counts) const {
    std::optional<IpAddress> at = first_address(within);
    while (at && within.contains(*at)) {
      const auto hit = std::ranges::find_if(
          all_, [&](const IpBlock& block) { return counts(block) && block.contains(*at); });
      if (hit == all_.end() && !is_this_node(*at)) return at;
      at = address_after(hit == all_.end() ? IpBlock{*at, at->is_v4() ? 32 : 128} : *hit);
    }
    return std::nullopt;
  }
  // Bits of the mapped form that the block leaves open.
  static int open_bits(const IpBlock& block) {
    return (block.base.is_v4() ? 32 : 128) - block.prefix_length;
  }
  static IpAddress first_address(const IpBlock& block) {
    IpAddress::Bytes bytes = block.base.bytes();
    for (int bit = 0; bit < open_bits(block); ++bit)
      bytes[static_cast<std::size_t>(15 - bit / 8)] &=
          static_cast<std::uint8_t>(~(1U << (bit % 8)));
    return IpAddress(bytes);
  }
  static std::optional<IpAddress> address_after(const IpBlock& block) {
    IpAddress::Bytes bytes = first_address(block).bytes();
    for (int bit = open_bits(block); bit < (block.base.is_v4() ? 32 : 128); ++bit) {
      const auto mask = static_cast<std::uint8_t>(1U << (bit % 8));
      std::uint8_t& byte = bytes[static_cast<std::size_t>(15 - bit / 8)];
      byte ^= mask;
      if (byte & mask) return IpAddress(bytes);  // no carry
    }
    return std::nullopt;
  }

  std::vector<IpBlock> all_;
  std::set<IpAddress> node_;
};

// --- classes

// Peers that are alike. Two workloads of them, where there are two: none is a peer of itself.
struct Class {
  // Of a client that may use any of several addresses, all: all must be allowed.
  std::vector<std::vector<Peer>> examples;
  std::map<SetId, PolicySet> rows;  // what each set says that it does not say of strangers
  ClassId id = 0;

  void add(std::vector<Peer> ends) {
    if (examples.empty() ||
        (examples.size() == 1 && examples.front().front().workload != ends.front().workload))
      examples.push_back(std::move(ends));
  }
};

enum class Direction : std::uint8_t { kIngress, kEgress };

// What the same policies say of one direction.
struct Set {
  SetId id = 0;
  Direction direction = Direction::kIngress;
  config::Selection selection;
  std::vector<const Workload*> examples;  // of who has it; two, where there are two
  std::array<std::vector<config::PortRange>, std::size(kTransports)> ports;  // all, in order
  PolicySet strangers;
};

class Compiler {
 public:
  Compiler(const Snapshot& snapshot, const std::vector<Client>& clients, Numbers& numbers,
           State& state)
      : snapshot_(snapshot),
        clients_(clients),
        numbers_(numbers),
        state_(state),
        parts_(snapshot),
        blocks_(parts_.address_blocks(), snapshot.node_addresses) {}

  void run() {
    find_sets();
    if (sets_.empty()) return;
    find_classes();
    for (auto& [key, set] : sets_) {
      set.strangers = row(set, strangers_);
      state_.sets[set.id] = numbered(0, set.strangers);
    }
    for (auto& [key, peers] : classes_) judge(key, peers);
    write_peers();
    write_blocks();
    write_clients();
  }

 private:
  // --- who is selected by what

  void find_sets() {
    for (const auto& [name, workload] : snapshot_.workloads) {
      add_to_set(*workload, Direction::kIngress);
      if (is_client(*workload)) add_to_set(*workload, Direction::kEgress);
    }
  }

  bool is_client(const Workload& workload) const {
    return std::ranges::any_of(
        clients_, [&](const Client& client) { return client.workload->name == workload.name; });
  }

  void add_to_set(const Workload& workload, Direction direction) {
    const bool is_ingress = direction == Direction::kIngress;
    config::Selection selection = is_ingress ? config::ingress_selection(snapshot_, workload)
                                             : config::egress_selection(snapshot_, workload);
    std::string key = parts_.key(selection, workload);
    if (key.empty()) return;
    key = (is_ingress ? "in " : "out ") + key;
    Set& set = sets_[key];
    if (set.examples.empty()) {
      set.id = numbers_.number(Space::kSet, key);
      set.direction = direction;
      for (std::size_t i = 0; i < std::size(kTransports); ++i)
        set.ports[i] =
            parts_.ports(selection, kTransports[i].first, is_ingress ? &workload : nullptr);
      set.selection = std::move(selection);
    }
    if (set.examples.size() < 2) set.examples.push_back(&workload);
    set_of_[{&workload, direction}] = set.id;
  }

  // --- who is alike

  std::string class_key(const Workload& workload, const std::optional<IpAddress>& address) {
    const std::string identity = parts_.peer_key(workload) + "|";
    if (address && blocks_.is_this_node(*address))
      return identity + "this node|" + blocks_.around(*address);
    if (blocks_.all().empty()) return identity;
    return identity + (address ? blocks_.around(*address) : "unknown");
  }

  void find_classes() {
    strangers_.add({Peer{nullptr, blocks_.outside_all()}});
    for (const auto& [name, workload] : snapshot_.workloads)
      for (const IpAddress& address : workload->addresses)
        classes_[class_key(*workload, address)].add({Peer{workload.get(), address}});
    for (const IpBlock& block : blocks_.all())
      if (const auto address = blocks_.own_address(block))
        classes_["|" + blocks_.around(*address)].add({Peer{nullptr, address}});
    for (const IpAddress& address : node_addresses())
      classes_["this node|" + blocks_.around(address)].add({Peer{nullptr, address}});
    for (const Client& client : clients_)
      for (const bool v4 : {true, false}) add_client(*client.workload, v4);
  }

  // Those of this node that no workload has.
  std::vector<IpAddress> node_addresses() const {
    std::vector<IpAddress> addresses;
    for (const IpAddress& address : snapshot_.node_addresses)
      if (!snapshot_.workload_by_address.contains(address)) addresses.push_back(address);
    return addresses;
  }

  // Which of its addresses a client will use is not known as it connects.
  std::vector<Peer> ends_of(const Workload& workload, bool v4) const {
    std::vector<Peer> ends;
    for (const IpAddress& address : workload.addresses)
      if (address.is_v4() == v4) ends.push_back({&workload, address});
    if (ends.empty()) ends.push_back({&workload, std::nullopt});
    return ends;
  }

  std::string client_key(const Workload& workload, bool v4) {
    std::set<std::string> keys;
    for (const Peer& end : ends_of(workload, v4)) keys.insert(class_key(workload, end.address));
    std::string all;
    for (const std::string& key : keys) all += (all.empty() ? "" : " and ") + key;
    return all;
  }

  void add_client(const Workload& workload, bool v4) {
    classes_[client_key(workload, v4)].add(ends_of(workload, v4));
  }

  // --- verdicts

  // Of somebody of these peers, at the other end of somebody else who has the set; none: nobody
  // else is there.
  std::optional<config::Verdict> verdict(const Set& set, const Class& peers, Transport transport,
                                         std::uint16_t port) const {
    for (const std::vector<Peer>& ends : peers.examples)
      for (const Workload* own : set.examples)
        if (!ends.front().workload || ends.front().workload->name != own->name)
          return verdict_of_all(set, *own, ends, transport, port);
    return std::nullopt;
  }

  config::Verdict verdict_of_all(const Set& set, const Workload& own, const std::vector<Peer>& ends,
                                 Transport transport, std::uint16_t port) const {
    std::optional<config::Verdict> allowed;
    for (const Peer& peer : ends) {
      auto found =
          set.direction == Direction::kIngress
              ? config::authorize_ingress(snapshot_, set.selection, peer, own, transport, port)
              : config::authorize_egress(snapshot_, set.selection, own, peer, transport, port);
      if (!found.allowed) return found;
      if (!allowed) allowed = std::move(found);
    }
    return *std::move(allowed);
  }

  // Keyed as class 0.
  PolicySet row(const Set& set, const Class& peers) {
    PolicySet verdicts;
    for (std::size_t i = 0; i < std::size(kTransports); ++i) {
      const auto& [transport, kernel] = kTransports[i];
      const config::PortRange& widest = *std::ranges::max_element(
          set.ports[i], {},
          [](const config::PortRange& range) { return range.last - range.first; });
      std::optional<datapath::VerdictEntry> usual;
      if (const auto found = verdict(set, peers, transport, widest.first)) usual = entry(*found);
      if (!usual) return {};
      verdicts[{0, kernel, 0, 65535}] = *usual;
      for (const config::PortRange& range : set.ports[i]) {
        const auto found = entry(*verdict(set, peers, transport, range.first));
        if (found != *usual) verdicts[{0, kernel, range.first, range.last}] = found;
      }
    }
    return verdicts;
  }

  datapath::VerdictEntry entry(const config::Verdict& verdict) {
    config::Verdict audited;
    if (verdict.audit) audited = {true, verdict.audit->policy, verdict.audit->rule, {}};
    return {verdict.allowed, policy_number(verdict, numbers_), policy_number(audited, numbers_)};
  }

  static PolicySet numbered(ClassId peer, const PolicySet& row) {
    PolicySet verdicts;
    for (const auto& [key, entry] : row)
      verdicts[{peer, key.transport, key.first, key.last}] = entry;
    return verdicts;
  }

  void judge(const std::string& key, Class& peers) {
    for (const auto& [name, set] : sets_) {
      PolicySet verdicts = row(set, peers);
      if (!verdicts.empty() && verdicts != set.strangers)
        peers.rows.emplace(set.id, std::move(verdicts));
    }
    if (peers.rows.empty()) return;
    peers.id = numbers_.number(Space::kClass, key);
    for (const auto& [set, verdicts] : peers.rows)
      state_.sets[set].merge(numbered(peers.id, verdicts));
  }

  // --- who is what

  SetId set_of(const Workload& workload, Direction direction) const {
    const auto found = set_of_.find({&workload, direction});
    return found == set_of_.end() ? 0 : found->second;
  }

  void write_peers() {
    for (const auto& [name, workload] : snapshot_.workloads)
      for (const IpAddress& address : workload->addresses) {
        const datapath::Peer peer{classes_.at(class_key(*workload, address)).id,
                                  set_of(*workload, Direction::kIngress)};
        if (peer != datapath::Peer{} || !blocks_.around(address).empty())
          state_.peers[address] = peer;
      }
    for (const IpAddress& address : node_addresses())
      if (const ClassId id = classes_.at("this node|" + blocks_.around(address)).id;
          id != 0 || !blocks_.around(address).empty())
        state_.peers[address] = {id, 0};
  }

  // Mapped IPv4 addresses lie within the widest IPv6 blocks, for the kernel alone.
  void write_blocks() {
    const auto covers_mapped = [](const IpBlock& block) {
      return !block.base.is_v4() && block.prefix_length <= 96;
    };
    if (std::ranges::any_of(blocks_.all(), covers_mapped))
      state_.blocks[IpBlock{IpAddress::v4(0, 0, 0, 0), 0}] = 0;
    for (const IpBlock& block : blocks_.all())
      if (const auto address = blocks_.own_address(block))
        state_.blocks[block] = classes_.at("|" + blocks_.around(*address)).id;
  }

  void write_clients() {
    for (const Client& client : clients_) {
      datapath::EnrolledWorkload& kernel = state_.workloads.at(client.kernel.id);
      kernel.class4 = classes_.at(client_key(*client.workload, true)).id;
      kernel.class6 = classes_.at(client_key(*client.workload, false)).id;
      const auto current = snapshot_.workloads.find(client.workload->name);
      if (current == snapshot_.workloads.end()) continue;  // the gateway: nothing selects it
      kernel.ingress = set_of(*current->second, Direction::kIngress);
      kernel.egress = set_of(*current->second, Direction::kEgress);
    }
  }

  const Snapshot& snapshot_;
  const std::vector<Client>& clients_;
  Numbers& numbers_;
  State& state_;
  config::PolicyParts parts_;
  Blocks blocks_;
  std::map<std::string, Set> sets_;
  std::map<std::pair<const Workload*, Direction>, SetId> set_of_;
  std::map<std::string, Class> classes_;
  Class strangers_;
};

}  // namespace

void add_policy(const Snapshot& snapshot, const std::vector<Client>& clients, Numbers& numbers,
                State& state) {
  Compiler(snapshot, clients, numbers, state).run();
}

std::uint32_t policy_number(const config::Verdict& verdict, Numbers& numbers) {
  if (verdict.policy.empty()) return 0;
  return numbers.number(Space::kPolicy, verdict.policy + "#" + std::to_string(verdict.rule));
}

}  // namespace mesh::control
