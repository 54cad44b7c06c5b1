#include "up_options.h"

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <iterator>

#include "cgroup.h"
#include "json_file.h"
#include "output.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;

json::object to_json(const Environment& environment, const ProgramOptions& options) {
  return {{"state_dir", environment.state_dir},   {"access_log", options.access_log},
          {"service_cidr", options.service_cidr}, {"log_level", options.log_level},
          {"workers", options.workers},           {"proxy_uid", options.proxy_uid}};
}

IpAddress first_of(const IpBlock& v4) {
  auto bytes = v4.base.bytes();
  for (int bit = v4.prefix_length; bit < 32; ++bit)
    bytes[static_cast<std::size_t>(12 + bit / 8)] &= static_cast<std::uint8_t>(~(0x80 >> bit % 8));
  return IpAddress(bytes);
}

std::string option_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// The run directory on the command line of a program of the mesh; empty: none found.
std::string run_dir_of_running(const Environment& environment) {
  auto cgroups = find_cgroups(environment.cgroup_name);
  if (!cgroups) return "";
  for (pid_t pid : cgroup_processes(cgroups.value().mesh())) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline");
    bool is_next = false;
    for (std::string word; std::getline(file, word, '\0'); is_next = word == "--run-dir")
      if (is_next) return word;
  }
  return "";
}

Error cannot_take_over(const Environment& environment) {
  std::string other = run_dir_of_running(environment);
  if (other == environment.run_dir)
    return {Errc::refused,
            "the mesh that runs cannot be taken over: its files are gone from its run directory " +
                other +
                " (what is enrolled stays captured and policed); `meshctl down` ends it, with its "
                "sandboxes, `meshctl up` with the options that it had then starts it"};
  return {Errc::refused, "the mesh that runs does not use the run directory " +
                             environment.run_dir +
                             (other.empty() ? "" : ", but " + other + " (--run-dir)") +
                             "; `meshctl down` ends it, `meshctl up` then starts it here"};
}

}  // namespace

void remember(const Environment& environment, const ProgramOptions& options) {
  std::ofstream(environment.run("up.json"), std::ios::trunc)
      << json::serialize(to_json(environment, options)) << "\n";
}

bool recall(Environment& environment, ProgramOptions& options) {
  auto object = read_json_file(environment.run("up.json"));
  if (!object) return false;
  read_member(*object, "state_dir", environment.state_dir);
  read_member(*object, "access_log", options.access_log);
  read_member(*object, "service_cidr", options.service_cidr);
  read_member(*object, "log_level", options.log_level);
  read_member(*object, "workers", options.workers);
  read_member(*object, "proxy_uid", options.proxy_uid);
  return true;
}

Result<> take_options_of_running(Environment& environment, ProgramOptions& options,
                                 const std::set<std::string>& given) {
  const json::object wanted = to_json(environment, options);
  if (!recall(environment, options)) return cannot_take_over(environment);
  const json::object running = to_json(environment, options);
  std::vector<std::string> others;
  for (const auto& [name, value] : wanted) {
    std::string option = option_of(name);
    const json::value& own = running.at(name);
    if (!given.contains(option) || value == own) continue;
    const bool is_default = own == json::value("") || own == json::value(0);
    others.push_back(option + " " + cell(value) + " (it has " +
                     (is_default ? "the default" : cell(own)) + ")");
  }
  if (others.empty()) return success();
  return Error{Errc::refused,
               "not applied, since the mesh that runs keeps its options: " + join(others, ", ") +
                   "; `meshctl down` ends it, with its sandboxes, then `meshctl up` takes them"};
}

Result<IpBlock> parse_service_cidr(const std::string& text) {
  MESH_TRY(auto block, IpBlock::parse(text));
  if (!block.base.is_v4() || block.prefix_length > 28)
    return Error{Errc::invalid_argument,
                 "must be an IPv4 block of /28 or larger, not '" + text + "'"};
  IpBlock whole = block;
  whole.base = first_of(block);
  if (whole != block)
    return Error{Errc::invalid_argument,
                 "'" + text + "' begins inside the block " + whole.to_string() + "; give that"};
  return block;
}

IpBlock service_block(const Environment& environment) {
  Environment place = environment;
  ProgramOptions options;
  recall(place, options);
  auto block = parse_service_cidr(options.service_cidr);
  return block ? block.value() : parse_service_cidr(ProgramOptions{}.service_cidr).value();
}

}  // namespace mesh::cli
