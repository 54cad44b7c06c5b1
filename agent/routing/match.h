// Does an HttpMatch accept this client and this request? Private to routing.
#pragma once

#include <string_view>

#include "config/snapshot.h"
#include "routing/route_table.h"

namespace mesh::routing {

// What depends on the client alone: gateways, source labels and namespace, port. `gateway`: which
// one it came through; null: it is a client of the mesh.
bool applies_to(const config::HttpMatch& match, const Client& client,
                const config::ObjectName* gateway);

// What depends on the request alone.
bool accepts(const config::HttpMatch& match, const RequestView& request);

// Accepts every request, so what follows it is never reached.
bool is_catch_all(const config::HttpMatch& match);

}  // namespace mesh::routing
