// Holder: what meshhold does. Holds every workload's listeners and the host's, makes upstream
// sockets, and hands both to meshproxy; meshd says for which workloads (feed/hold.h).
//
// One poll loop, one thread. It keeps all it holds through the death of either peer; after
// meshproxy has been away for kProxyGrace, or when meshd says that it hangs, the connections that
// wait are reset and new ones refused, until the next meshproxy comes or this one works again.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/address.h"
#include "base/result.h"
#include "feed/channel.h"
#include "feed/hold.h"
#include "feed/namespace_sockets.h"

namespace mesh::feed {

struct HolderOptions {
  std::string run_dir;
  std::uint32_t proxy_uid = 0;
  std::uint32_t meshd_uid = 0;  // 0 but in tests
};

class Holder {
 public:
  static Result<std::unique_ptr<Holder>> open(const HolderOptions& options);
  // Serves until `stop` becomes readable.
  Result<> run(int stop);

 private:
  using Clock = std::chrono::steady_clock;
  struct Workload {
    UniqueFd netns;  // none: our own namespace
    std::uint64_t cookie = 0;
    Fds listeners;  // outbound before DNS, IPv4 first
    Refusal dns;    // why there are none for DNS
    bool named = false;
  };
  struct HostListener {
    HoldMessage message;  // as the proxy is told
    UniqueFd fd;
    bool named = false;
  };
  using HostKey = std::tuple<ListenerKind, std::uint8_t, IpAddress, std::uint16_t>;
  struct Request {  // kEnrol or kHostListener
    HoldMessage message;
    Fds fds;
    std::optional<Clock::time_point> until = {};  // set: its port was taken, and is tried again
    bool asked_proxy = false;
    bool is_last_try = false;
  };

  static HostKey key_of(const HoldMessage& message);

  Holder(HolderOptions options, NamespaceSockets sockets, UniqueFd listener);

  void accept_meshd();
  void dial_proxy();
  void lose_meshd(const Error& why);
  void lose_proxy(const Error& why);
  void read_meshd();
  void read_proxy();
  void serve_wants();
  void unpark_wants();
  void retry_taken_ports();
  bool is_retried(std::uint32_t id) const;
  void refuse_after_grace();
  void on_proxy_state(bool works);
  void open_all();
  void refuse_all();
  int poll_timeout() const;

  Result<> from_meshd(const HoldMessage& message, Fds fds);
  Result<> from_proxy(const HoldMessage& message, Fds fds);
  void given_back(const HoldMessage& message, Fds fds);
  void enrol(Request request);
  Refusal hold(Request& request);
  Refusal take_back(Workload& workload, Fds& fds) const;
  Refusal make_listeners(Workload& workload, int netns) const;
  void listen_on_host(Request request);
  bool try_again_later(Request& request);
  void end(std::uint32_t id);
  void end_host_listener(const HostKey& key);
  void sync();

  void answer_enrolled(std::uint32_t id, const Refusal& refusal);
  void offer_all();
  void offer(std::uint32_t id, const Workload& workload);
  void to_meshd(const HoldMessage& message, Fds fds = {});
  void to_proxy(const HoldMessage& message, Fds fds = {});

  HolderOptions options_;
  NamespaceSockets sockets_;
  UniqueFd listener_;
  std::optional<Channel> meshd_, proxy_;
  std::optional<Error> meshd_failed_, proxy_failed_;  // seen while sending; acted on in the loop
  std::map<std::uint32_t, Workload> workloads_;
  std::map<HostKey, HostListener> host_listeners_;
  std::deque<HoldMessage> wants_;
  std::deque<HoldMessage> parked_;  // of workloads that a restarted meshd or meshhold will name
  std::vector<Request> retries_;
  Clock::time_point proxy_lost_at_ = Clock::now();
  bool refusing_ = false;
  bool synced_ = false;
  bool sync_due_ = false;  // asked for, while retries_ were not done
  bool warned_about_proxy_ = false;
};

}  // namespace mesh::feed
