// What the mesh knows of a name: its answer, or that the name is not the mesh's.
//
// Names of the mesh, for a client in namespace `ns` (specification: Kubernetes DNS-based service
// discovery 1.1.0; ServiceEntry hosts as Istio's DNS proxying):
//   service, service.ns, service.ns.svc, service.ns.svc.cluster.local
//   endpoint.<one of those>         of a headless Service: its WorkloadEntry's name, or its address
//                                   with dashes (10-78-0-1)
//   _port._proto.<one of those>     SRV
//   a host of a ServiceEntry        the addresses of the entry, or those that it was given
// Such a name is answered for every type: what it has not is an empty answer. A name is only the
// mesh's where its Service exists; all else belongs to whoever the client asked. Search suffixes
// need nothing more, but that a mesh name with the suffixes of the client's own namespace behind it
// is denied here and now, so that the client's next try is the right one.
// Pure; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "config/snapshot.h"
#include "dns/message.h"

namespace mesh::dns {

inline constexpr std::uint32_t kTtl = 30;         // seconds; as Istio and CoreDNS
inline constexpr std::uint32_t kNegativeTtl = 5;  // a Service that is new is soon seen

// The resolver of a sandbox, which has no other: at this address the mesh answers alone, and what
// it does not know does not exist. (RFC 7600: an address that is nobody's)
inline constexpr IpAddress kMeshResolver = IpAddress::v4(192, 0, 0, 8);

struct Resolution {
  enum class Kind : std::uint8_t {
    kForeign,     // not the mesh's
    kAnswer,      // `answer` is whole; empty: the name has nothing of this type
    kNoSuchName,  // it would be the mesh's, and there is none
    kElsewhere,   // `answer` begins with CNAME records and goes on with what `target` resolves to
  };
  Kind kind = Kind::kForeign;
  Answer answer;
  std::string target;
  std::string object;  // "Service default/reviews": what decided
};

// `name`: as Query has it. `turn`: which of several endpoints is named first.
Resolution resolve(const config::Snapshot& snapshot, std::string_view ns, std::string_view name,
                   std::uint16_t type, std::uint32_t turn = 0);

// What the mesh says where nobody else can be asked: there is no such name.
Answer no_such_name(std::string_view name, std::uint32_t serial);

}  // namespace mesh::dns
