#include "feed/holder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <utility>

#include "base/log.h"

namespace mesh::feed {
namespace {

Logger log() {
  static const Logger made = logger("hold");
  return made;
}

constexpr std::chrono::milliseconds kRedial{20};
constexpr std::chrono::milliseconds kPortTakenPatience{2000};
constexpr std::size_t kMaxWants = 4096;

UniqueFd duplicate(const UniqueFd& fd) { return UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)); }

Fds duplicates(const Fds& fds) {
  Fds copies;
  for (const UniqueFd& fd : fds) copies.push_back(duplicate(fd));
  return copies;
}

Fds one(UniqueFd fd) {
  Fds fds;
  fds.push_back(std::move(fd));
  return fds;
}

HoldMessage message_of(HoldType type, std::uint32_t workload) {
  HoldMessage message;
  message.type = type;
  message.workload = workload;
  return message;
}

bool is_listener_of(const ListenerIdentity& identity, const SocketAddress& address, bool v6) {
  if (address.ip.is_unspecified())
    return identity.address.ip.is_unspecified() && identity.address.port == address.port;
  return identity.v6 == v6 && identity.address == address;
}

// Which of the listeners of a workload it is; nullopt: none that NamespaceSockets made.
std::optional<ListenerKind> kind_of(const ListenerIdentity& identity) {
  const SocketAddress& at = identity.address;
  const bool on_lo = !identity.v6 && identity.on_loopback;
  if (at.port == kDnsPort && on_lo && at.ip.is_unspecified())
    return identity.datagram ? ListenerKind::kDnsUdp : ListenerKind::kDnsTcp;
  if (at.port != kOutboundPort || identity.datagram) return std::nullopt;
  if (on_lo && at.ip == IpAddress::v4(127, 0, 0, 1)) return ListenerKind::kOutbound;
  IpAddress::Bytes loopback{};
  loopback[15] = 1;
  if (identity.v6 && at.ip == IpAddress(loopback)) return ListenerKind::kOutbound;
  return std::nullopt;
}

std::set<ListenerKind> kinds_of(const Fds& listeners) {
  std::set<ListenerKind> kinds;
  for (const UniqueFd& listener : listeners)
    if (const auto identity = identify_listener(listener.get()))
      if (const auto kind = kind_of(*identity)) kinds.insert(*kind);
  return kinds;
}

// Those of a workload that has such listeners; for DNS it takes both.
std::uint8_t families_of(const Fds& listeners) {
  std::uint8_t families = 0;
  for (const UniqueFd& listener : listeners) {
    const auto identity = identify_listener(listener.get());
    if (!identity || is_dns(kind_of(*identity).value_or(ListenerKind::kOutbound))) continue;
    families |= identity->v6 ? kHasFamily6 : kHasFamily4;
  }
  const auto kinds = kinds_of(listeners);
  if (kinds.contains(ListenerKind::kDnsUdp) && kinds.contains(ListenerKind::kDnsTcp))
    families |= kHasDns;
  return families;
}

}  // namespace

Result<std::unique_ptr<Holder>> Holder::open(const HolderOptions& options) {
  MESH_TRY(auto sockets, NamespaceSockets::open());
  MESH_TRY(auto listener, listen_unix(options.run_dir + "/hold.sock", 0600));
  return std::unique_ptr<Holder>(new Holder(options, std::move(sockets), std::move(listener)));
}

Holder::Holder(HolderOptions options, NamespaceSockets sockets, UniqueFd listener)
    : options_(std::move(options)), sockets_(std::move(sockets)), listener_(std::move(listener)) {}

Holder::HostKey Holder::key_of(const HoldMessage& message) {
  return {message.kind, message.family, IpAddress(message.ip), message.port};
}

// --- the loop

Result<> Holder::run(int stop) {
  while (true) {
    if (!proxy_) dial_proxy();
    const auto events_of = [](const std::optional<Channel>& channel) {
      return static_cast<short>(POLLIN | (channel && channel->wants_write() ? POLLOUT : 0));
    };
    std::array<pollfd, 4> polled = {{{stop, POLLIN, 0},
                                     {listener_.get(), POLLIN, 0},
                                     {meshd_ ? meshd_->fd() : -1, events_of(meshd_), 0},
                                     {proxy_ ? proxy_->fd() : -1, events_of(proxy_), 0}}};
    if (::poll(polled.data(), polled.size(), poll_timeout()) < 0) {
      if (errno == EINTR) continue;
      return errno_error(errno, "poll");
    }
    if (polled[0].revents != 0) return success();
    if (polled[2].revents != 0) read_meshd();
    if (polled[3].revents != 0) read_proxy();
    if (polled[1].revents != 0) accept_meshd();
    serve_wants();
    retry_taken_ports();
    refuse_after_grace();
    if (meshd_failed_) lose_meshd(*std::exchange(meshd_failed_, std::nullopt));
    if (proxy_failed_) lose_proxy(*std::exchange(proxy_failed_, std::nullopt));
  }
}

int Holder::poll_timeout() const {
  if (!proxy_ || !retries_.empty()) return static_cast<int>(kRedial.count());
  return proxy_ && !wants_.empty() && !proxy_->wants_write() ? 0 : -1;
}

void Holder::accept_meshd() {
  auto accepted = accept_unix(listener_.get(), options_.meshd_uid);
  if (!accepted) {
    if (accepted.error().code != Errc::unavailable)
      log()->warn("a peer was refused error={}", accepted.error().message);
    return;
  }
  if (meshd_) log()->info("a new meshd replaces the last");
  meshd_.emplace(std::move(accepted).value());
  meshd_failed_.reset();
  retries_.clear();
  sync_due_ = false;
  for (auto& [id, workload] : workloads_) workload.named = false;
  for (auto& [key, listener] : host_listeners_) listener.named = false;
  log()->info("meshd connected");
}

void Holder::dial_proxy() {
  auto dialled = dial_unix(options_.run_dir + "/proxy.sock", options_.proxy_uid);
  if (!dialled) {
    if (dialled.error().code == Errc::permission && !std::exchange(warned_about_proxy_, true))
      log()->error("meshproxy's socket is not to be trusted error={}", dialled.error().message);
    return;
  }
  proxy_.emplace(std::move(dialled).value());
  warned_about_proxy_ = refusing_ = false;
  if (auto sent = proxy_->send_bytes(kHoldHello); !sent) proxy_failed_ = sent.error();
  open_all();
  offer_all();
  log()->info("meshproxy connected workloads={}", workloads_.size());
}

void Holder::lose_meshd(const Error& why) {
  log()->info("meshd is gone; all that is held stays reason={}", why.message);
  meshd_.reset();
  retries_.clear();
  sync_due_ = false;
}

void Holder::lose_proxy(const Error& why) {
  log()->warn("meshproxy is gone reason={}", why.message);
  proxy_.reset();
  wants_.clear();
  parked_.clear();
  proxy_lost_at_ = Clock::now();
}

void Holder::read_meshd() {
  if (!meshd_) return;
  if (auto sent = meshd_->flush(); !sent) return lose_meshd(sent.error());
  auto received = meshd_->receive([this](std::string_view payload, Fds fds) -> Result<> {
    MESH_TRY(auto message, parse_hold_message(payload));
    return from_meshd(message, std::move(fds));
  });
  if (!received) lose_meshd(received.error());
}

void Holder::read_proxy() {
  if (!proxy_) return;
  if (auto sent = proxy_->flush(); !sent) return lose_proxy(sent.error());
  auto received = proxy_->receive([this](std::string_view payload, Fds fds) -> Result<> {
    MESH_TRY(auto message, parse_hold_message(payload));
    return from_proxy(message, std::move(fds));
  });
  if (!received) lose_proxy(received.error());
}

void Holder::refuse_after_grace() {
  if (proxy_ || refusing_ || Clock::now() - proxy_lost_at_ < kProxyGrace) return;
  log()->warn("meshproxy stays away; connections to it are refused until it is back");
  refuse_all();
}

void Holder::on_proxy_state(bool works) {
  if (!proxy_ || refusing_ != works) return;
  log()->warn("meshproxy {}", works ? "works again" : "hangs; connections to it are refused");
  if (!works) return refuse_all();
  refusing_ = false;
  open_all();
}

void Holder::open_all() {
  for (const auto& [id, workload] : workloads_)
    for (const UniqueFd& listener : workload.listeners)
      if (auto opened = accept_connections(listener.get()); !opened)
        log()->error("a listener could not be opened again id={} error={}", id,
                     opened.error().message);
  for (const auto& [key, listener] : host_listeners_)
    if (auto opened = accept_connections(listener.fd.get()); !opened)
      log()->error("a listener of the host could not be opened again port={} error={}",
                   listener.message.port, opened.error().message);
}

void Holder::refuse_all() {
  refusing_ = true;
  for (const auto& [id, workload] : workloads_)
    for (const UniqueFd& listener : workload.listeners) refuse_connections(listener.get());
  for (const auto& [key, listener] : host_listeners_) refuse_connections(listener.fd.get());
}

// --- meshd's dialogue

Result<> Holder::from_meshd(const HoldMessage& message, Fds fds) {
  switch (message.type) {
    case HoldType::kEnrol:
      enrol({message, std::move(fds)});
      return success();
    case HoldType::kEnd:
      end(message.workload);
      return success();
    case HoldType::kHostListener:
      listen_on_host({message, std::move(fds)});
      return success();
    case HoldType::kEndHostListener:
      end_host_listener(key_of(message));
      return success();
    case HoldType::kSync:
      sync();
      return success();
    case HoldType::kProxyState:
      on_proxy_state(message.status == HoldStatus::kOk);
      return success();
    default:
      return Error{Errc::invalid_argument, "meshd sent a message that is not its to send"};
  }
}

void Holder::enrol(Request request) {
  const Refusal refusal = hold(request);
  if (refusal.status == HoldStatus::kPortTaken && try_again_later(request)) return;
  const std::uint32_t id = request.message.workload;
  if (refusal.status == HoldStatus::kOk) {
    offer(id, workloads_.at(id));
    unpark_wants();
  }
  answer_enrolled(id, refusal);
}

// Afterwards workloads_ holds the workload, or (but for kOk) does not.
Refusal Holder::hold(Request& request) {
  const HoldMessage& message = request.message;
  Fds& fds = request.fds;
  const std::uint32_t id = message.workload;
  const auto held = workloads_.find(id);
  if (fds.empty() && held != workloads_.end()) {
    held->second.named = true;
    return {};
  }
  Workload workload;
  workload.named = true;
  if (message.flags & kFlagHostNamespace) {
    workload.cookie = sockets_.own_cookie();
    workloads_.insert_or_assign(id, std::move(workload));
    return {};
  }
  if (fds.empty()) return {HoldStatus::kNotHeld, 0};
  if (const Refusal refusal = sockets_.inspect(fds[0].get(), workload.cookie);
      refusal.status != HoldStatus::kOk)
    return refusal;
  if (held != workloads_.end()) {
    if (held->second.cookie == workload.cookie) {
      held->second.named = true;
      return {};
    }
    end(id);  // the same name in another namespace: a new workload
  }
  for (const auto& [other, theirs] : workloads_)
    if (theirs.cookie == workload.cookie) return {HoldStatus::kShared, static_cast<int>(other)};
  const bool may_be_ours = !synced_ || fds.size() > 1;
  if (const Refusal refusal = take_back(workload, fds); refusal.status != HoldStatus::kOk)
    return refusal;
  if (const Refusal refusal = make_listeners(workload, fds[0].get());
      refusal.status != HoldStatus::kOk)
    return refusal;
  if (workload.dns.status == HoldStatus::kPortTaken && may_be_ours && !request.is_last_try) {
    for (UniqueFd& listener : workload.listeners) fds.push_back(std::move(listener));
    return workload.dns;
  }
  workload.netns = std::move(fds[0]);
  workloads_.emplace(id, std::move(workload));
  return {};
}

// Those that it did not bring back. Without DNS's a workload is still a workload; but where it was
// held before us, their port is first waited for, as the outbound one is (try_again_later).
Refusal Holder::make_listeners(Workload& workload, int netns) const {
  if (workload.listeners.empty()) {
    const Refusal refusal = sockets_.make_outbound_listeners(netns, workload.listeners);
    if (refusal.status != HoldStatus::kOk) return refusal;
  }
  const auto kinds = kinds_of(workload.listeners);
  workload.dns =
      sockets_.make_dns_listeners(netns, !kinds.contains(ListenerKind::kDnsUdp),
                                  !kinds.contains(ListenerKind::kDnsTcp), workload.listeners);
  return {};
}

Refusal Holder::take_back(Workload& workload, Fds& fds) const {
  for (std::size_t i = 1; i < fds.size(); ++i) {
    const auto identity = identify_listener(fds[i].get());
    if (!identity || identity->netns_cookie != workload.cookie || !kind_of(*identity))
      return {HoldStatus::kForeign, 0};
  }
  std::set<std::pair<ListenerKind, bool>> have;  // meshd and the proxy may both bring one
  for (std::size_t i = 1; i < fds.size(); ++i) {
    const auto identity = identify_listener(fds[i].get());
    if (!have.emplace(*kind_of(*identity), identity->v6).second) continue;
    if (auto opened = accept_connections(fds[i].get()); !opened)
      log()->warn("a listener could not be opened again error={}", opened.error().message);
    workload.listeners.push_back(std::move(fds[i]));
  }
  fds.resize(1);
  return {};
}

void Holder::listen_on_host(Request request) {
  const HoldMessage& message = request.message;
  Fds& fds = request.fds;
  const SocketAddress address{IpAddress(message.ip), message.port};
  const bool v6 = message.family == kFamily6;
  const HostKey key = key_of(message);
  HoldMessage answer = message;
  answer.type = HoldType::kHostListening;
  auto held = host_listeners_.find(key);
  if (held == host_listeners_.end()) {
    HostListener made{message, {}, true};
    made.message.type = HoldType::kListener;
    made.message.netns_cookie = sockets_.own_cookie();
    Refusal refusal;
    if (!fds.empty()) {
      const auto identity = identify_listener(fds[0].get());
      if (!identity || identity->netns_cookie != sockets_.own_cookie() ||
          !is_listener_of(*identity, address, v6))
        refusal = {HoldStatus::kForeign, 0};
      else if (auto opened = accept_connections(fds[0].get()); !opened)
        refusal = {HoldStatus::kUnavailable, 0};
      made.fd = std::move(fds[0]);
    } else {
      refusal = sockets_.make_host_listener(address, v6, made.fd);
    }
    if (refusal.status == HoldStatus::kPortTaken && try_again_later(request)) return;
    answer.status = refusal.status;
    answer.detail = static_cast<std::uint32_t>(refusal.error);
    if (refusal.status != HoldStatus::kOk) return to_meshd(answer);
    held = host_listeners_.emplace(key, std::move(made)).first;
    to_proxy(held->second.message, one(duplicate(held->second.fd)));
  }
  held->second.named = true;
  to_meshd(answer, one(duplicate(held->second.fd)));
}

// The port may be taken by a listener of ours that only the proxy still has: meshd and the meshhold
// before died together. The proxy is asked for it, and the request is tried again for a moment.
bool Holder::try_again_later(Request& request) {
  if (request.is_last_try) return false;
  if (!request.until) request.until = Clock::now() + kPortTakenPatience;
  if (proxy_ && !request.asked_proxy) {
    HoldMessage ask = request.message;
    ask.type = HoldType::kGiveBack;
    if (request.message.type == HoldType::kEnrol) ask.kind = ListenerKind::kOutbound;
    to_proxy(ask);
    request.asked_proxy = true;
  }
  retries_.push_back(std::move(request));
  return true;
}

// Nothing is believed: take_back() and listen_on_host() look at each descriptor.
void Holder::given_back(const HoldMessage& message, Fds fds) {
  const auto asked = std::ranges::find_if(retries_, [&](const Request& request) {
    if (!request.asked_proxy || request.message.workload != message.workload) return false;
    if (request.message.type == HoldType::kEnrol) return message.kind == ListenerKind::kOutbound;
    return key_of(request.message) == key_of(message);
  });
  if (asked == retries_.end()) return;
  for (UniqueFd& fd : fds) asked->fds.push_back(std::move(fd));
}

bool Holder::is_retried(std::uint32_t id) const {
  return std::ranges::any_of(retries_, [id](const Request& retry) {
    return retry.message.type == HoldType::kEnrol && retry.message.workload == id;
  });
}

void Holder::retry_taken_ports() {
  if (retries_.empty()) return;
  for (Request& retry : std::exchange(retries_, {})) {
    retry.is_last_try = Clock::now() >= *retry.until;
    if (retry.message.type == HoldType::kEnrol)
      enrol(std::move(retry));
    else
      listen_on_host(std::move(retry));
  }
  unpark_wants();
  if (sync_due_) sync();
}

void Holder::end(std::uint32_t id) {
  std::erase_if(retries_, [id](const Request& retry) {
    return retry.message.type == HoldType::kEnrol && retry.message.workload == id;
  });
  for (auto* wants : {&wants_, &parked_})
    std::erase_if(*wants, [id](const HoldMessage& want) { return want.workload == id; });
  if (workloads_.erase(id) == 0) return;
  to_proxy(message_of(HoldType::kRevoke, id));
}

void Holder::end_host_listener(const HostKey& key) {
  const auto held = host_listeners_.find(key);
  if (held == host_listeners_.end()) return;
  HoldMessage revoke = held->second.message;
  revoke.type = HoldType::kRevokeListener;
  host_listeners_.erase(held);
  to_proxy(revoke);
}

// The proxy must not drop what it is about to give back.
void Holder::sync() {
  sync_due_ = !retries_.empty();
  if (sync_due_) return;
  std::vector<std::uint32_t> unnamed;
  for (const auto& [id, workload] : workloads_)
    if (!workload.named) unnamed.push_back(id);
  for (const std::uint32_t id : unnamed) end(id);
  std::vector<HostKey> unnamed_listeners;
  for (const auto& [key, listener] : host_listeners_)
    if (!listener.named) unnamed_listeners.push_back(key);
  for (const HostKey& key : unnamed_listeners) end_host_listener(key);
  synced_ = true;
  unpark_wants();
  to_proxy(message_of(HoldType::kSync, 0));
}

void Holder::answer_enrolled(std::uint32_t id, const Refusal& refusal) {
  HoldMessage answer = message_of(HoldType::kEnrolled, id);
  answer.status = refusal.status;
  answer.detail = static_cast<std::uint32_t>(refusal.error);
  if (refusal.status != HoldStatus::kOk) {
    log()->warn("a workload could not be enrolled id={} reason={}", id, to_string(refusal.status));
    return to_meshd(answer);
  }
  const Workload& workload = workloads_.at(id);
  answer.netns_cookie = workload.cookie;
  answer.families =
      workload.netns ? families_of(workload.listeners) : std::uint8_t{kHasFamily4 | kHasFamily6};
  answer.detail = static_cast<std::uint32_t>(workload.dns.error);
  to_meshd(answer, duplicates(workload.listeners));
}

void Holder::to_meshd(const HoldMessage& message, Fds fds) {
  if (!meshd_ || meshd_failed_) return;
  if (auto sent = meshd_->send_bytes(as_bytes(message), std::move(fds)); !sent)
    meshd_failed_ = sent.error();
}

// --- the proxy's dialogue

void Holder::offer_all() {
  for (const auto& [id, workload] : workloads_) offer(id, workload);
  for (const auto& [key, listener] : host_listeners_)
    to_proxy(listener.message, one(duplicate(listener.fd)));
  if (synced_) to_proxy(message_of(HoldType::kSync, 0));
}

void Holder::offer(std::uint32_t id, const Workload& workload) {
  for (const UniqueFd& listener : workload.listeners) {
    const auto identity = identify_listener(listener.get());
    const auto kind = identity ? kind_of(*identity) : std::nullopt;
    if (!kind) continue;
    HoldMessage message = message_of(HoldType::kListener, id);
    message.kind = *kind;
    message.family = identity->v6 ? kFamily6 : kFamily4;
    message.ip = identity->address.ip.bytes();
    message.port = identity->address.port;
    message.netns_cookie = workload.cookie;
    to_proxy(message, one(duplicate(listener)));
  }
}

Result<> Holder::from_proxy(const HoldMessage& message, Fds fds) {
  if (message.type == HoldType::kGivenBack) {
    given_back(message, std::move(fds));
    return success();
  }
  if (!fds.empty()) return Error{Errc::permission, "meshproxy sent a descriptor"};
  if (message.type != HoldType::kWantSockets)
    return Error{Errc::permission, "meshproxy sent a message that is not its to send"};
  if (wants_.size() + parked_.size() >= kMaxWants)
    return Error{Errc::exhausted, "meshproxy asks for more sockets than it takes"};
  wants_.push_back(message);
  return success();
}

// Only while the proxy reads what it asked for: sockets that wait in our queue are ours to count.
void Holder::serve_wants() {
  for (int rounds = 0; rounds < 64 && proxy_ && !proxy_->wants_write() && !wants_.empty();
       ++rounds) {
    HoldMessage answer = wants_.front();
    wants_.pop_front();
    if (!workloads_.contains(answer.workload) && (!synced_ || is_retried(answer.workload))) {
      parked_.push_back(answer);  // we just started, and meshd has not named all of them yet
      continue;
    }
    answer.type = HoldType::kSockets;
    Fds fds;
    if (const auto held = workloads_.find(answer.workload); held == workloads_.end()) {
      answer.status = HoldStatus::kUnknown;
    } else {
      const Refusal refusal =
          sockets_.make_sockets(held->second.netns.get(), answer.family,
                                (answer.flags & kFlagDatagram) != 0, answer.count, fds);
      answer.status = refusal.status;
      answer.detail = static_cast<std::uint32_t>(refusal.error);
    }
    answer.count = static_cast<std::uint32_t>(fds.size());
    to_proxy(answer, std::move(fds));  // our copies close as they are sent: else no FIN goes out
  }
}

void Holder::unpark_wants() {
  for (const HoldMessage& want : std::exchange(parked_, {})) wants_.push_back(want);
}

void Holder::to_proxy(const HoldMessage& message, Fds fds) {
  if (!proxy_ || proxy_failed_) return;
  if (auto sent = proxy_->send_bytes(as_bytes(message), std::move(fds)); !sent)
    proxy_failed_ = sent.error();
}

}  // namespace mesh::feed
