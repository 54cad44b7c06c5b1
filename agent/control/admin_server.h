// AdminServer: HTTP/1.1 with JSON over the Unix socket that meshctl talks to (api/messages.h).
//
// The socket's mode decides who may connect (root, and the group `undermesh` where there is one);
// changes need user 0 (SO_PEERCRED). Bounded: connections (some are kept for root), size of a body
// (less for others than root), what waits for a tap that does not read, time for each exchange.
// Lives on the io_context's one thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <string>

#include "base/result.h"
#include "control/node.h"

namespace mesh::control {

class AdminServer {
 public:
  AdminServer(boost::asio::io_context& io, Node& node);  // `node` outlives the io_context's run
  Result<> listen(const std::string& path);

 private:
  void accept();

  boost::asio::io_context& io_;
  Node& node_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  int connections_ = 0, of_readers_ = 0;
};

}  // namespace mesh::control
