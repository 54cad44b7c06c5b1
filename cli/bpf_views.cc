#include "bpf_views.h"

#include <cinttypes>
#include <cstdio>
#include <thread>

#include "api/messages.h"
#include "client.h"
#include "config/policy.h"
#include "datapath/pins.h"
#include "output.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;

std::string decimal(double value, const char* format = "%.1f") {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string size_of(std::uint64_t bytes) {
  if (bytes < 1U << 10U) return std::to_string(bytes) + " B";
  const double kib = static_cast<double>(bytes) / 1024;
  return kib < 1024 ? decimal(kib) + " KiB" : decimal(kib / 1024) + " MiB";
}

// The first few; all of them are in JSON.
std::string some_of(const std::vector<std::string>& links) {
  constexpr std::size_t kShown = 3;
  if (links.size() <= kShown) return join(links, ",");
  return join({links.begin(), links.begin() + kShown}, ",") + " and " +
         std::to_string(links.size() - kShown) + " more";
}

int print(Format format, const json::value& value, const Table& table) {
  std::fputs((format == Format::kTable ? table.to_string() : render(format, value)).c_str(),
             stdout);
  return kOk;
}

using Runs = std::map<std::string, datapath::ProgramUse>;

Result<Runs> runs_of(const std::string& pin_dir) {
  MESH_TRY(auto programs, datapath::pinned_programs(pin_dir));
  Runs runs;
  for (auto& program : programs) runs.emplace(program.name, std::move(program));
  return runs;
}

// Growth; what ended meanwhile took its runs along.
std::uint64_t grown(std::uint64_t before, std::uint64_t after) {
  return after > before ? after - before : 0;
}

struct Watched {
  datapath::Counters counters;
  Runs runs;
};

Result<Watched> watch(const std::string& pin_dir, std::chrono::seconds span) {
  MESH_TRY(auto counting, datapath::count_runs());
  MESH_TRY(auto runs, runs_of(pin_dir));
  MESH_TRY(auto counters, datapath::pinned_counters(pin_dir));
  std::this_thread::sleep_for(span);
  MESH_TRY(auto later_runs, runs_of(pin_dir));
  MESH_TRY(auto later, datapath::pinned_counters(pin_dir));
  for (auto& [name, total] : later.totals) total = grown(counters.totals[name], total);
  for (auto& [name, program] : later_runs) {
    program.runs = grown(runs[name].runs, program.runs);
    program.run_nanoseconds = grown(runs[name].run_nanoseconds, program.run_nanoseconds);
  }
  return Watched{std::move(later), std::move(later_runs)};
}

void print_runs(const Runs& runs, double seconds) {
  Table table({"PROGRAM", "RUNS/S", "NS/RUN", "CPU"});
  for (const auto& [name, program] : runs) {
    if (program.runs == 0) continue;
    const auto count = static_cast<double>(program.runs);
    const auto spent = static_cast<double>(program.run_nanoseconds);
    table.row({name, decimal(count / seconds), decimal(spent / count, "%.0f"),
               decimal(spent / seconds / 1e7, "%.3f%%")});
  }
  if (table.empty())
    std::puts("No program ran.");
  else
    std::fputs(table.to_string().c_str(), stdout);
  std::puts("");
}

void print_counters(const datapath::Counters& counters) {
  Table table({"COUNTER", "COUNT"});
  for (const auto& [name, total] : counters.totals)
    if (total != 0) table.row({name, std::to_string(total)});
  if (table.empty())
    std::puts("Every counter is 0.");
  else
    std::fputs(table.to_string().c_str(), stdout);
}

json::object stats_json(const Watched& watched, std::chrono::seconds span) {
  json::object counters, runs;
  for (const auto& [name, total] : watched.counters.totals) counters[name] = total;
  for (const auto& [name, program] : watched.runs)
    runs[name] = {{"runs", program.runs}, {"runNanoseconds", program.run_nanoseconds}};
  json::object all{{"counters", std::move(counters)}};
  if (span.count() > 0) {
    all["seconds"] = span.count();
    all["programs"] = std::move(runs);
  }
  return all;
}

std::string age_in(const json::object& row, std::string_view member) {
  const json::value* value = row.if_contains(member);
  return value ? age(std::chrono::seconds(value->to_number<std::int64_t>())) : "";
}

// "AuthorizationPolicy ns/name[0]".
std::string rule_in(const json::object& row) {
  const json::value* rule = row.if_contains("rule");
  const std::string policy = text_in(row, "policy");
  return policy.empty() || !rule ? policy : config::rule_name(policy, rule->to_number<int>());
}

// Of UDP it is told for how long it has been quiet, not since when it is there.
std::vector<std::string> flow_cells(const json::object& row, bool wide) {
  std::string state = text_in(row, "state");
  if (const std::string quiet = age_in(row, "quiet_seconds"); !quiet.empty())
    state += " (quiet for " + quiet + ")";
  std::vector<std::string> cells;
  for (const char* member : {"workload", "protocol", "direction", "destination", "peer"})
    cells.push_back(text_in(row, member));
  cells.insert(cells.end(), {std::move(state), age_in(row, "seconds")});
  for (const char* member : {"sent", "received", "retransmits", "verdict"})
    cells.push_back(text_in(row, member));
  if (wide)
    cells.insert(cells.end(), {rule_in(row), text_in(row, "local"), text_in(row, "cookie")});
  return cells;
}

}  // namespace

Result<int> bpf_programs(const Environment& environment, Format format) {
  MESH_TRY(require_root("meshctl bpf"));
  MESH_TRY(auto programs, datapath::pinned_programs(environment.pin_dir));
  Table table({"PROGRAM", "TYPE", "INSTANCES", "VERIFIED", "CODE", "ATTACHED", "AT"});
  json::array list;
  for (const auto& program : programs) {
    table.row({program.name, program.type, std::to_string(program.instances),
               std::to_string(program.verified_instructions), size_of(program.machine_bytes),
               std::to_string(program.links.size()), some_of(program.links)});
    json::array links(program.links.begin(), program.links.end());
    list.push_back({{"name", program.name},
                    {"type", program.type},
                    {"instances", program.instances},
                    {"verifiedInstructions", program.verified_instructions},
                    {"machineBytes", program.machine_bytes},
                    {"links", std::move(links)}});
  }
  return print(format, json::object{{"programs", std::move(list)}}, table);
}

Result<int> bpf_maps(const Environment& environment, Format format) {
  MESH_TRY(require_root("meshctl bpf"));
  MESH_TRY(auto maps, datapath::pinned_maps(environment.pin_dir));
  Table table({"MAP", "TYPE", "ENTRIES", "MAX", "FULL", "MEMORY", "OUTLIVES UPGRADES"});
  json::array list;
  std::uint64_t bytes = 0;
  for (const auto& map : maps) {
    const bool is_bounded = map.entries && map.max_entries != 0;
    const double full = is_bounded ? 100.0 * static_cast<double>(*map.entries) /
                                         static_cast<double>(map.max_entries)
                                   : 0;
    table.row({map.name, map.type, map.entries ? std::to_string(*map.entries) : "",
               map.max_entries != 0 ? std::to_string(map.max_entries) : "",
               is_bounded ? decimal(full) + "%" : "", size_of(map.bytes),
               map.outlives_upgrades ? "yes" : ""});
    bytes += map.bytes;
    list.push_back({{"name", map.name},
                    {"type", map.type},
                    {"entries", map.entries ? json::value(*map.entries) : json::value(nullptr)},
                    {"maxEntries", map.max_entries},
                    {"bytes", map.bytes},
                    {"outlivesUpgrades", map.outlives_upgrades}});
  }
  table.row({"total", "", "", "", "", size_of(bytes), ""});
  return print(format, json::object{{"maps", std::move(list)}, {"bytes", bytes}}, table);
}

Result<int> bpf_stats(const Environment& environment, std::chrono::seconds span, Format format) {
  MESH_TRY(require_root("meshctl bpf"));
  Watched watched;
  if (span.count() > 0) {
    MESH_TRY(watched, watch(environment.pin_dir, span));
  } else {
    MESH_TRY(watched.counters, datapath::pinned_counters(environment.pin_dir));
  }
  if (format != Format::kTable) return print(format, stats_json(watched, span), Table({}));
  if (span.count() > 0) print_runs(watched.runs, static_cast<double>(span.count()));
  print_counters(watched.counters);
  return kOk;
}

Result<int> bpf_flows(const Environment& environment, bool wide, Format format) {
  MESH_TRY(auto reply, Client(environment.run_dir).get<api::Dump>("/v1/dump/flows"));
  if (format != Format::kTable) return print(format, api::to_json(reply), Table({}));
  if (reply.rows.empty()) {
    std::puts("No L4 connections are open.");
    return kOk;
  }
  std::vector<std::string> titles = {"WORKLOAD", "PROTOCOL",    "DIRECTION", "DESTINATION",
                                     "PEER",     "STATE",       "AGE",       "SENT",
                                     "RECEIVED", "RETRANSMITS", "VERDICT"};
  if (wide) titles.insert(titles.end(), {"POLICY", "LOCAL", "COOKIE"});
  Table table(std::move(titles));
  for (const json::object& row : reply.rows) table.row(flow_cells(row, wide));
  std::fputs(table.to_string().c_str(), stdout);
  return kOk;
}

}  // namespace mesh::cli
