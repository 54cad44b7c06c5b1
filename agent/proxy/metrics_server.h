// MetricsServer: GET /metrics in Prometheus text (also /stats/prometheus, as Istio's agents offer
// it), on listeners that meshhold made in the host's namespace.
//
// Lives on the main thread, off the workers: a scrape delays no request. Bounded: few connections,
// short heads, every wait has a deadline.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "net/reactor.h"
#include "net/tcp.h"
#include "proxy/worker.h"

namespace mesh::proxy {

class MetricsServer {
 public:
  using Write = std::function<void(std::string& out)>;

  MetricsServer(net::Reactor& reactor, Write write);
  void add_listener(const ListenerId& id, UniqueFd fd);
  void remove_listener(const ListenerId& id);
  std::vector<ListenerId> listeners() const;
  UniqueFd duplicate_listener(const ListenerId& id) const;  // none: there is no such one
  // Ends everything; await it before destruction.
  net::Task<> close();

 private:
  struct Serving {
    explicit Serving(net::Scope& parent) : scope(parent) {}
    std::unique_ptr<net::Listener> listener;
    net::Scope scope;
  };
  net::Task<> accept_all(Serving& serving);
  net::Task<> serve(UniqueFd fd);
  std::string respond(std::string_view path, bool is_get, bool keep_alive);

  net::Reactor& reactor_;
  Write write_;
  net::Scope scope_;
  net::Group group_;
  std::size_t connections_ = 0;
  std::map<ListenerId, std::unique_ptr<Serving>> listeners_;
  std::vector<std::unique_ptr<Serving>> ending_;  // removed; each ends with its accept loop
};

}  // namespace mesh::proxy
