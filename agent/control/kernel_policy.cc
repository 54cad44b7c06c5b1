#include "control/kernel_policy.h"

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "config/policy_parts.h"
#include "control/address_blocks.h"

namespace mesh::control {
namespace {

using config::NetworkPolicy;
using config::Peer;
using config::Snapshot;
using config::Transport;
using config::Workload;
using config::WorkloadPtr;
using datapath::ClassId;
using datapath::PolicySet;
using datapath::SetId;
using datapath::State;

constexpr std::pair<Transport, datapath::Transport> kTransports[] = {
    {Transport::kTcp, datapath::Transport::kTcp}, {Transport::kUdp, datapath::Transport::kUdp}};

// What is said of one class, but for its number.
using Row = std::vector<std::pair<datapath::VerdictKey, datapath::VerdictEntry>>;

enum class Direction : std::uint8_t { kIngress, kEgress };

// What the same policies say of one direction.
struct Set {
  SetId id = 0;
  std::string key;
  Direction direction = Direction::kIngress;
  config::Selection selection;
  // Whoever has it, under a name that nobody has: so nobody is judged as itself, which the kernel
  // knows without a set.
  Workload own;
  std::array<std::vector<config::PortRange>, std::size(kTransports)> ports;  // all, in order
  Row strangers;
  std::vector<std::string> traits;  // who may be treated otherwise than a stranger has one of them
  std::size_t members = 0;
};

// One end of who is of a class: a workload, an address, or both.
struct End {
  WorkloadPtr workload;
  std::optional<IpAddress> address;
  Peer peer() const { return {workload.get(), address}; }
};

// Peers that are alike.
struct Class {
  std::string key;
  // Of one of them. Of a client that may use any of several addresses, all: all must be allowed.
  std::vector<End> ends;
  ClassId id = 0;
  std::vector<std::string> traits;
  std::set<SetId> sets;           // that treat it otherwise than a stranger
  std::set<IpAddress> addresses;  // of its members that are known by one
  std::size_t members = 0;
};

struct Member {  // a workload
  Set* ingress = nullptr;
  std::vector<Class*> classes;  // by address
};

// Who is at an address.
struct Place {
  Class* peer = nullptr;
  SetId ingress = 0;
};

// An enrolled workload: who it was when it was looked at.
struct ClientMember {
  datapath::WorkloadId id = 0;
  WorkloadPtr workload, current;
  Class *class4 = nullptr, *class6 = nullptr;
  Set* egress = nullptr;
  bool is_of(const ClientMember& other) const {
    return id == other.id && workload == other.workload && current == other.current;
  }
};

constexpr const char* kAnyWorkload = "workload";

// What an address is to the blocks of a policy, where that is not known, and to a stranger's.
struct Locality {
  std::optional<IpAddress> address;
  bool is_this_node = false;
};

bool asks_for_address(const config::SourceMatch& match) {
  return !match.ip_blocks.empty() || !match.not_ip_blocks.empty();
}

bool contains(const config::NetworkPeer& peer, const std::optional<IpAddress>& address) {
  return address && peer.block->contains(*address) &&
         std::ranges::none_of(peer.except,
                              [&](const IpBlock& block) { return block.contains(*address); });
}

template <class See>
void each_source(const Set& set, See see) {
  for (const config::AuthorizationPolicy* policy : set.selection.authorization)
    for (const config::L4Rule& rule : policy->rules)
      for (const auto* matches : {&rule.from, &rule.when})
        for (const config::SourceMatch& match : *matches) see(match);
}

template <class See>
void each_network_rule(const Set& set, See see) {
  for (const NetworkPolicy* policy : set.selection.network)
    for (const config::NetworkRule& rule :
         set.direction == Direction::kIngress ? policy->ingress_rules : policy->egress_rules)
      see(*policy, rule);
}

// Whether the set's policies can tell two places apart, whoever is there.
bool tells_apart(const Set& set, const Locality& a, const Locality& b) {
  bool differs = a.is_this_node != b.is_this_node && set.direction == Direction::kIngress &&
                 !set.selection.network.empty();
  each_source(set, [&](const config::SourceMatch& match) {
    if (differs || !asks_for_address(match)) return;
    differs = a.address.has_value() != b.address.has_value();
    if (differs || !a.address) return;
    for (const auto* blocks : {&match.ip_blocks, &match.not_ip_blocks})
      for (const IpBlock& block : *blocks)
        differs = differs || block.contains(*a.address) != block.contains(*b.address);
  });
  each_network_rule(set, [&](const NetworkPolicy&, const config::NetworkRule& rule) {
    for (const config::NetworkPeer& peer : rule.peers)
      if (peer.block && !differs) differs = contains(peer, a.address) != contains(peer, b.address);
  });
  return differs;
}

// The namespace of the principals that begin so; empty: of any.
std::string namespace_of(const std::string& principal) {
  static const std::string kStart = "cluster.local/ns/";
  if (!principal.starts_with(kStart)) return {};
  const std::size_t slash = principal.find('/', kStart.size());
  return slash == std::string::npos ? std::string()
                                    : principal.substr(kStart.size(), slash - kStart.size());
}

}  // namespace

class KernelPolicy::Tables {
 public:
  explicit Tables(Numbers& numbers) : numbers_(numbers) {}

  void update(const Snapshot& snapshot, const std::vector<Client>& clients, State& state) {
    snapshot_ = &snapshot;
    if (!is_same_ground() || !has_seen(clients) || !follow_workloads()) start_over(clients);
    follow_clients(clients);
    judge_pending();
    sweep();
    fill(state);
    snapshot_ = nullptr;
  }

  std::uint32_t policy_number(const config::Verdict& verdict) {
    if (verdict.policy.empty()) return 0;
    std::string name = verdict.policy + "#" + std::to_string(verdict.rule);
    const auto [known, is_new] = policy_numbers_.try_emplace(std::move(name), 0);
    if (is_new) {
      known->second = numbers_.number(Space::kPolicy, known->first);
      policies_used_.insert(known->second);
    }
    return known->second;
  }

  std::uint64_t ground() const { return ground_; }
  bool take_ended() { return std::exchange(ended_, false); }
  bool uses(Space space, std::uint32_t number) const {
    switch (space) {
      case Space::kSet:
        return set_by_id_.contains(number);
      case Space::kClass:
        return class_by_id_.contains(number);
      default:
        return policies_used_.contains(number);
    }
  }

 private:
  // --- what everything stands on

  bool is_same_ground() const {
    return parts_ && policies_ == snapshot_->policies &&
           network_policies_ == snapshot_->network_policies &&
           namespaces_ == snapshot_->namespaces && node_addresses_ == snapshot_->node_addresses;
  }

  // A client may be of an entry that is no more.
  bool has_seen(const std::vector<Client>& clients) const {
    return std::ranges::all_of(clients, [this](const Client& client) {
      return seen_namespaces_.contains(client.workload->name.ns);
    });
  }

  void start_over(const std::vector<Client>& clients) {
    ended_ = true;
    ++ground_;
    known_.clear(), workloads_.clear(), clients_.clear(), block_classes_.clear();
    new_sets_.clear(), new_classes_.clear(), maybe_empty_.clear(), touched_.clear();
    sets_.clear(), set_by_id_.clear(), sets_by_trait_.clear();
    classes_.clear(), class_by_id_.clear(), classes_by_trait_.clear();
    places_.clear(), localities_.clear(), seen_namespaces_.clear();
    policy_numbers_.clear(), policies_used_.clear();
    written_sets_.clear(), written_peers_.clear();
    policies_ = snapshot_->policies;
    network_policies_ = snapshot_->network_policies;
    namespaces_ = snapshot_->namespaces;
    node_addresses_ = snapshot_->node_addresses;
    parts_.emplace(*snapshot_);
    blocks_.emplace(parts_->address_blocks(), node_addresses_);
    for (const auto& [ns, labels] : namespaces_) seen_namespaces_.insert(ns);
    for (const auto& [name, workload] : snapshot_->workloads) seen_namespaces_.insert(name.ns);
    for (const Client& client : clients) seen_namespaces_.insert(client.workload->name.ns);
    names_ports_in_egress_ = std::ranges::any_of(network_policies_, [](const auto& policy) {
      return std::ranges::any_of(policy->egress_rules, [](const config::NetworkRule& rule) {
        return std::ranges::any_of(rule.ports, [](const auto& port) { return !port.name.empty(); });
      });
    });
    stranger_ = {blocks_->outside_all(), false};
    for (const auto& [name, workload] : snapshot_->workloads) add_workload(workload);
    for (const IpBlock& block : blocks_->all())
      if (const auto address = blocks_->own_address(block))
        block_classes_.emplace_back(block, join(class_of({nullptr, address})));
    for (const IpAddress& address : node_addresses_)
      if (!snapshot_->workload_by_address.contains(address))
        place(address, {join(class_of({nullptr, address})), 0});
    workloads_ = snapshot_->workloads;
  }

  // --- workloads

  // False: they changed what everything stands on.
  bool follow_workloads() {
    const auto changes = changed_workloads();
    if (std::ranges::any_of(changes,
                            [this](const auto& c) { return moves_ground(c.first, c.second); }))
      return false;
    std::vector<std::pair<const Workload*, Member>> gone;
    for (const auto& [before, now] : changes)
      if (before)
        gone.emplace_back(before->get(), std::move(known_.extract((*before)->name).mapped()));
    for (const auto& [before, now] : changes)
      if (now) add_workload(*now);
    for (const auto& [workload, was] : gone) forget_workload(*workload, was);
    if (!changes.empty()) workloads_ = snapshot_->workloads;
    return true;
  }

  // Before and now; null: it was, or is, not there.
  std::vector<std::pair<const WorkloadPtr*, const WorkloadPtr*>> changed_workloads() const {
    std::vector<std::pair<const WorkloadPtr*, const WorkloadPtr*>> changes;
    each_difference(workloads_, snapshot_->workloads, [&](const auto* before, const auto* now) {
      changes.emplace_back(before ? &before->second : nullptr, now ? &now->second : nullptr);
    });
    return changes;
  }

  bool moves_ground(const WorkloadPtr* before, const WorkloadPtr* now) const {
    for (const WorkloadPtr* workload : {before, now}) {
      if (!workload) continue;
      if (!seen_namespaces_.contains((*workload)->name.ns)) return true;
      for (const IpAddress& address : (*workload)->addresses)
        if (blocks_->is_this_node(address)) return true;
    }
    if (!names_ports_in_egress_) return false;
    const auto ports = [&](const WorkloadPtr* workload) {
      return workload ? parts_->asked_ports(**workload) : std::vector<std::string>();
    };
    return ports(before) != ports(now);
  }

  void add_workload(const WorkloadPtr& workload) {
    Member member;
    member.ingress = set_of(*workload, Direction::kIngress);
    if (member.ingress) ++member.ingress->members;
    for (const IpAddress& address : workload->addresses) {
      member.classes.push_back(join(class_of({workload, address})));
      place(address, {member.classes.back(), member.ingress ? member.ingress->id : 0});
    }
    known_[workload->name] = std::move(member);
  }

  // Its addresses may be another's by now.
  void forget_workload(const Workload& workload, const Member& was) {
    for (std::size_t i = 0; i < workload.addresses.size(); ++i) {
      const IpAddress& address = workload.addresses[i];
      const auto owner = snapshot_->workload_by_address.find(address);
      if (owner == snapshot_->workload_by_address.end()) {
        places_.erase(address);
        touched_.push_back(address);
        was.classes[i]->addresses.erase(address);
      } else if (known_.at(owner->second->name).classes[index_of(*owner->second, address)] !=
                 was.classes[i]) {
        was.classes[i]->addresses.erase(address);
      }
      leave(was.classes[i]);
    }
    leave(was.ingress);
  }

  static std::size_t index_of(const Workload& workload, const IpAddress& address) {
    return static_cast<std::size_t>(std::ranges::find(workload.addresses, address) -
                                    workload.addresses.begin());
  }

  void place(const IpAddress& address, const Place& who) {
    places_[address] = who;
    who.peer->addresses.insert(address);
    touched_.push_back(address);
  }

  // --- clients

  void follow_clients(const std::vector<Client>& clients) {
    std::vector<ClientMember> now;
    for (const Client& client : clients) {
      const auto current = snapshot_->workloads.find(client.workload->name);
      now.push_back({client.kernel.id, client.workload,
                     current == snapshot_->workloads.end() ? nullptr : current->second});
    }
    const auto is_same = [](const auto& a, const auto& b) { return a.is_of(b); };
    if (std::ranges::equal(clients_, now, is_same)) return;
    for (ClientMember& client : now) {
      client.class4 = join(client_class(client.workload, true));
      client.class6 = join(client_class(client.workload, false));
      if (!client.current) continue;  // the snapshot has no such workload: nothing selects it
      client.egress = set_of(*client.current, Direction::kEgress);
      if (client.egress) ++client.egress->members;
    }
    for (const ClientMember& client : std::exchange(clients_, std::move(now))) {
      leave(client.class4), leave(client.class6), leave(client.egress);
    }
  }

  // --- who is selected by what

  Set* set_of(const Workload& workload, Direction direction) {
    const bool is_ingress = direction == Direction::kIngress;
    config::Selection selection = is_ingress ? config::ingress_selection(*snapshot_, workload)
                                             : config::egress_selection(*snapshot_, workload);
    std::string key = parts_->key(selection, workload);
    if (key.empty()) return nullptr;
    key = (is_ingress ? "in " : "out ") + key;
    auto [known, is_new] = sets_.try_emplace(std::move(key));
    Set& set = known->second;
    if (!is_new) return &set;
    set.key = known->first;
    set.id = numbers_.number(Space::kSet, set.key);
    set.direction = direction;
    set.own = workload;
    set.own.name.name += "~";
    for (std::size_t i = 0; i < std::size(kTransports); ++i)
      set.ports[i] =
          is_ingress ? parts_->ingress_ports(selection, kTransports[i].first, workload)
                     : parts_->egress_ports(*snapshot_, selection, kTransports[i].first, nullptr);
    set.selection = std::move(selection);
    set_by_id_[set.id] = &set;
    new_sets_.push_back(&set);
    return &set;
  }

  void leave(Set* set) {
    if (set && --set->members == 0) empty_sets_.push_back(set->key);
  }

  // --- who is alike

  std::string class_key(const End& end) const {
    const std::string identity = end.workload ? parts_->peer_key(*end.workload) + "|" : "|";
    if (end.address && blocks_->is_this_node(*end.address))
      return identity + "this node|" + blocks_->around(*end.address);
    if (blocks_->all().empty()) return identity;
    return identity + (end.address ? blocks_->around(*end.address) : "unknown");
  }

  Class* class_of(const End& end) { return find_class(class_key(end), {end}); }

  Class* find_class(std::string key, std::vector<End> ends) {
    auto [known, is_new] = classes_.try_emplace(std::move(key));
    Class& found = known->second;
    if (!is_new) return &found;
    found.key = known->first;
    found.ends = std::move(ends);
    new_classes_.push_back(&found);
    return &found;
  }

  // Which of its addresses a client will use is not known as it connects.
  Class* client_class(const WorkloadPtr& workload, bool v4) {
    std::vector<End> ends;
    for (const IpAddress& address : workload->addresses)
      if (address.is_v4() == v4) ends.push_back({workload, address});
    if (ends.empty()) ends.push_back({workload, std::nullopt});
    std::set<std::string> keys;
    for (const End& end : ends) keys.insert(class_key(end));
    std::string all;
    for (const std::string& key : keys) all += (all.empty() ? "" : " and ") + key;
    return find_class(std::move(all), std::move(ends));
  }

  static Class* join(Class* peers) {
    ++peers->members;
    return peers;
  }
  void leave(Class* peers) {
    if (peers && --peers->members == 0) maybe_empty_.push_back(peers->key);
  }

  // --- who may be treated otherwise than a stranger: what a set asks for, and a class has

  std::vector<std::string> traits_of(const Set& set) const {
    std::set<std::string> traits;
    each_source(set, [&](const config::SourceMatch& match) { add_traits(match, traits); });
    each_network_rule(set, [&](const NetworkPolicy& policy, const config::NetworkRule& rule) {
      for (const config::NetworkPeer& peer : rule.peers)
        if (!peer.block) add_traits(peer, policy.name.ns, traits);
      for (const config::NetworkPort& port : rule.ports)  // a stranger's have no names
        if (!port.name.empty() && set.direction == Direction::kEgress) traits.insert(kAnyWorkload);
    });
    for (const auto& [around, locality] : localities_)
      if (tells_apart(set, locality, stranger_)) traits.insert("at " + around);
    return {traits.begin(), traits.end()};
  }

  static void add_traits(const config::SourceMatch& match, std::set<std::string>& traits) {
    using Kind = config::StringMatch::Kind;
    for (const auto* principals : {&match.principals, &match.not_principals})
      for (const config::StringMatch& m : *principals) {
        const std::string ns = m.kind == Kind::kPrefix ? namespace_of(m.value) : "";
        if (m.kind == Kind::kExact && !m.ignore_case)
          traits.insert("principal " + m.value);
        else
          traits.insert(ns.empty() || m.ignore_case ? kAnyWorkload : "namespace " + ns);
      }
    for (const auto* namespaces : {&match.namespaces, &match.not_namespaces})
      for (const config::StringMatch& m : *namespaces)
        traits.insert(m.kind == Kind::kExact && !m.ignore_case ? "namespace " + m.value
                                                               : kAnyWorkload);
    for (const auto* accounts : {&match.service_accounts, &match.not_service_accounts})
      for (const std::string& account : *accounts) traits.insert("account " + account);
  }

  // One of the labels that it asks for will do.
  void add_traits(const config::NetworkPeer& peer, const std::string& policy_ns,
                  std::set<std::string>& traits) const {
    if (peer.pods && !peer.pods->labels.empty()) {
      const auto& [name, value] = *peer.pods->labels.begin();
      traits.insert("label " + name + "=" + value);
    } else if (!peer.namespaces) {
      traits.insert("namespace " + policy_ns);
    } else {
      for (const std::string& ns : seen_namespaces_)
        if (config::selects_namespace(*snapshot_, *peer.namespaces, ns))
          traits.insert("namespace " + ns);
    }
  }

  std::vector<std::string> traits_of(const Class& peers) {
    std::set<std::string> traits;
    for (const End& end : peers.ends) {
      traits.insert("at " + locality_of(end));
      if (!end.workload) continue;
      const Workload& workload = *end.workload;
      traits.insert({kAnyWorkload, "principal " + workload.principal(),
                     "namespace " + workload.name.ns,
                     "account " + workload.name.ns + "/" + workload.service_account});
      for (const std::string& label : parts_->asked_labels(workload))
        traits.insert("label " + label);
    }
    return {traits.begin(), traits.end()};
  }

  // Its name; a new one is told to all sets.
  std::string locality_of(const End& end) {
    const Locality locality{end.address, end.address && blocks_->is_this_node(*end.address)};
    std::string name = !end.address ? "unknown" : blocks_->around(*end.address);
    if (locality.is_this_node) name = "this node|" + name;
    if (!localities_.emplace(name, locality).second) return name;
    const std::string trait = "at " + name;
    for (auto& [id, set] : set_by_id_)
      if (!set->strangers.empty() && tells_apart(*set, locality, stranger_)) {
        set->traits.push_back(trait);
        sets_by_trait_[trait].insert(id);
      }
    return name;
  }

  // --- verdicts

  // Of somebody of these ends; all must be allowed.
  config::Verdict verdict(const Set& set, const std::vector<End>& ends, Transport transport,
                          std::uint16_t port) const {
    std::optional<config::Verdict> allowed;
    for (const End& end : ends) {
      auto found = set.direction == Direction::kIngress
                       ? config::authorize_ingress(*snapshot_, set.selection, end.peer(), set.own,
                                                   transport, port)
                       : config::authorize_egress(*snapshot_, set.selection, set.own, end.peer(),
                                                  transport, port);
      if (!found.allowed) return found;
      if (!allowed) allowed = std::move(found);
    }
    return *std::move(allowed);
  }

  Row row(const Set& set, const std::vector<End>& ends) {
    Row verdicts;
    for (std::size_t i = 0; i < std::size(kTransports); ++i) {
      const auto& [transport, kernel] = kTransports[i];
      const config::PortRange& widest = *std::ranges::max_element(
          set.ports[i], {},
          [](const config::PortRange& range) { return range.last - range.first; });
      const datapath::VerdictEntry usual = entry(verdict(set, ends, transport, widest.first));
      verdicts.emplace_back(datapath::VerdictKey{0, kernel, 0, 65535}, usual);
      for (const config::PortRange& range : set.ports[i]) {
        if (&range == &widest) continue;
        const auto found = entry(verdict(set, ends, transport, range.first));
        if (found != usual)
          verdicts.emplace_back(datapath::VerdictKey{0, kernel, range.first, range.last}, found);
      }
    }
    return verdicts;
  }

  datapath::VerdictEntry entry(const config::Verdict& verdict) {
    config::Verdict audited;
    if (verdict.audit) audited = {true, verdict.audit->policy, verdict.audit->rule, {}};
    return {verdict.allowed, policy_number(verdict), policy_number(audited)};
  }

  void write(SetId set, ClassId peer, const Row& row) {
    PolicySet& verdicts = written_sets_[set];
    for (const auto& [key, entry] : row)
      verdicts.insert_or_assign({peer, key.transport, key.first, key.last}, entry);
  }

  void judge(const Set& set, Class& peers) {
    const Row verdicts = row(set, peers.ends);
    if (verdicts == set.strangers) return;
    peers.sets.insert(set.id);
    if (peers.id == 0) {
      renumber(peers, numbers_.number(Space::kClass, peers.key));
      class_by_id_[peers.id] = &peers;
    }
    write(set.id, peers.id, verdicts);
  }

  void renumber(Class& peers, ClassId id) {
    peers.id = id;
    touched_.insert(touched_.end(), peers.addresses.begin(), peers.addresses.end());
  }

  // Sets first: then a new class is judged by all of them, and an old one by the new sets alone.
  void judge_pending() {
    const std::unordered_set<const Class*> unjudged(new_classes_.begin(), new_classes_.end());
    for (Set* set : std::exchange(new_sets_, {})) {
      set->strangers = row(*set, {End{nullptr, stranger_.address}});
      write(set->id, 0, set->strangers);
      set->traits = traits_of(*set);
      std::map<std::string_view, Class*> concerned;
      for (const std::string& trait : set->traits) {
        sets_by_trait_[trait].insert(set->id);
        if (const auto found = classes_by_trait_.find(trait); found != classes_by_trait_.end())
          for (Class* peers : found->second)
            if (!unjudged.contains(peers)) concerned.emplace(peers->key, peers);
      }
      for (auto& [key, peers] : concerned) judge(*set, *peers);
    }
    for (Class* peers : std::exchange(new_classes_, {})) {
      peers->traits = traits_of(*peers);
      std::set<SetId> concerned;
      for (const std::string& trait : peers->traits) {
        classes_by_trait_[trait].insert(peers);
        if (const auto found = sets_by_trait_.find(trait); found != sets_by_trait_.end())
          concerned.insert(found->second.begin(), found->second.end());
      }
      for (const SetId id : concerned) judge(*set_by_id_.at(id), *peers);
    }
  }

  // --- what nobody has or is any more

  void sweep() {
    for (const std::string& key : std::exchange(empty_sets_, {}))
      if (const auto found = sets_.find(key); found != sets_.end() && found->second.members == 0)
        erase_set(found->second);
    for (const std::string& key : std::exchange(maybe_empty_, {}))
      if (const auto found = classes_.find(key);
          found != classes_.end() && found->second.members == 0)
        erase_class(found->second);
  }

  void erase_set(Set& set) {
    ended_ = true;
    for (const auto& [key, entry] : written_sets_.at(set.id)) {
      if (key.peer == 0) continue;
      const auto peers = class_by_id_.find(key.peer);
      if (peers == class_by_id_.end()) continue;  // of an entry before
      peers->second->sets.erase(set.id);
      if (!peers->second->sets.empty()) continue;
      renumber(*peers->second, 0);
      class_by_id_.erase(peers);
    }
    for (const std::string& trait : set.traits) sets_by_trait_[trait].erase(set.id);
    written_sets_.erase(set.id);
    set_by_id_.erase(set.id);
    sets_.erase(std::string(set.key));
  }

  void erase_class(Class& peers) {
    ended_ = true;
    for (const SetId id : peers.sets) {
      PolicySet& verdicts = written_sets_[id];
      const auto first = [&] {
        return verdicts.lower_bound({peers.id, datapath::Transport::kAny, 0, 0});
      };
      for (auto at = first(); at != verdicts.end() && at->first.peer == peers.id; at = first())
        verdicts.erase(datapath::VerdictKey(at->first));
    }
    for (const std::string& trait : peers.traits) classes_by_trait_[trait].erase(&peers);
    class_by_id_.erase(peers.id);
    classes_.erase(std::string(peers.key));
  }

  // --- what the kernel is told

  void fill(State& state) {
    for (const IpAddress& address : std::exchange(touched_, {})) write_peer(address);
    if (sets_.empty()) return;
    state.sets = written_sets_;
    state.peers = written_peers_;
    fill_blocks(state);
    for (const ClientMember& client : clients_) {
      datapath::EnrolledWorkload& kernel = state.workloads.at(client.id);
      kernel.class4 = client.class4->id;
      kernel.class6 = client.class6->id;
      if (!client.current) continue;
      const Set* ingress = known_.at(client.current->name).ingress;
      kernel.ingress = ingress ? ingress->id : 0;
      kernel.egress = client.egress ? client.egress->id : 0;
    }
  }

  void write_peer(const IpAddress& address) {
    const auto who = places_.find(address);
    datapath::Peer peer;
    if (who != places_.end()) peer = {who->second.peer->id, who->second.ingress};
    const bool is_needed =
        who != places_.end() && (peer != datapath::Peer{} || !blocks_->around(address).empty());
    if (!is_needed) {
      written_peers_.erase(address);
    } else if (const auto now = written_peers_.find(address);
               now == written_peers_.end() || now->second != peer) {
      written_peers_.insert_or_assign(address, peer);
    }
  }

  // Mapped IPv4 addresses lie within the widest IPv6 blocks, for the kernel alone.
  void fill_blocks(State& state) const {
    const auto covers_mapped = [](const IpBlock& block) {
      return !block.base.is_v4() && block.prefix_length <= 96;
    };
    if (std::ranges::any_of(blocks_->all(), covers_mapped))
      state.blocks[IpBlock{IpAddress::v4(0, 0, 0, 0), 0}] = 0;
    for (const auto& [block, peers] : block_classes_) state.blocks[block] = peers->id;
  }

  Numbers& numbers_;
  const Snapshot* snapshot_ = nullptr;  // while update() runs
  // What everything stands on; sets borrow the policies.
  std::vector<config::AuthorizationPolicyPtr> policies_;
  std::vector<config::NetworkPolicyPtr> network_policies_;
  decltype(Snapshot::namespaces) namespaces_;
  std::vector<IpAddress> node_addresses_;
  std::optional<config::PolicyParts> parts_;
  std::optional<AddressBlocks> blocks_;
  std::set<std::string> seen_namespaces_;
  bool names_ports_in_egress_ = false;
  Locality stranger_;

  decltype(Snapshot::workloads) workloads_;
  std::map<config::ObjectName, Member> known_;
  std::vector<ClientMember> clients_;
  std::vector<std::pair<IpBlock, Class*>> block_classes_;
  std::unordered_map<IpAddress, Place> places_;
  std::map<std::string, Locality> localities_;  // of which a class is known
  std::unordered_map<std::string, Set> sets_;   // by key; they stay where they are
  std::map<SetId, Set*> set_by_id_;
  std::unordered_map<std::string, std::set<SetId>> sets_by_trait_;
  std::unordered_map<std::string, Class> classes_;
  std::unordered_map<ClassId, Class*> class_by_id_;
  std::unordered_map<std::string, std::unordered_set<Class*>> classes_by_trait_;
  std::unordered_map<std::string, std::uint32_t> policy_numbers_;
  std::unordered_set<std::uint32_t> policies_used_;
  std::vector<Set*> new_sets_;
  std::vector<Class*> new_classes_;
  std::vector<std::string> empty_sets_, maybe_empty_;
  std::vector<IpAddress> touched_;
  decltype(State::sets) written_sets_;
  decltype(State::peers) written_peers_;
  bool ended_ = false;
  std::uint64_t ground_ = 0;
};

KernelPolicy::KernelPolicy(Numbers& numbers) : tables_(std::make_unique<Tables>(numbers)) {}
KernelPolicy::~KernelPolicy() = default;

void KernelPolicy::update(const Snapshot& snapshot, const std::vector<Client>& clients,
                          State& state) {
  tables_->update(snapshot, clients, state);
}

std::uint32_t KernelPolicy::policy_number(const config::Verdict& verdict) {
  return tables_->policy_number(verdict);
}

std::uint64_t KernelPolicy::ground() const { return tables_->ground(); }

bool KernelPolicy::take_ended() { return tables_->take_ended(); }

bool KernelPolicy::uses(Space space, std::uint32_t number) const {
  return tables_->uses(space, number);
}

}  // namespace mesh::control
