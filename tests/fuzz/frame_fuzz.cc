// Frames out of any bytes, cut anywhere, and what the payloads are then parsed as.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <boost/json.hpp>

#include "feed/channel.h"
#include "feed/hold.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t step = data[0] % 64U + 1;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  mesh::feed::FrameDecoder decoder;
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    const auto fed = decoder.feed(bytes.substr(at, step),
                                  [](std::string_view payload, mesh::feed::Fds) -> mesh::Result<> {
                                    (void)mesh::feed::parse_hold_message(payload).has_value();
                                    (void)mesh::feed::parse_message(payload).has_value();
                                    return mesh::success();
                                  });
    if (!fed) break;
  }
  return 0;
}
