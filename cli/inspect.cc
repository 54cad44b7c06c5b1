#include "inspect.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>

#include "api/messages.h"
#include "cgroup.h"
#include "client.h"
#include "fast_path.h"
#include "lifecycle.h"
#include "output.h"
#include "process.h"
#include "supervisor.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;
using std::chrono::seconds;

std::string number(std::uint64_t value) { return value == 0 ? "" : std::to_string(value); }

// Since when a process runs: field 22 of its stat, in clock ticks since boot. 0: unknown.
std::uint64_t seconds_running(std::uint64_t pid) {
  const auto ticks = stat_field(static_cast<pid_t>(pid), 22);
  double uptime = 0;
  std::ifstream("/proc/uptime") >> uptime;
  if (pid == 0 || !ticks) return 0;
  const double started = static_cast<double>(*ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return static_cast<std::uint64_t>(std::max(0.0, uptime - started));
}

void print_programs(const api::Status& status, const Environment& environment) {
  auto supervised = supervised_programs(environment);
  Table table({"PROGRAM", "STATE", "PID", "UP", "VERSION", "CONFIG", "RESTARTS", "DETAIL"});
  for (const auto& [name, program] : status.programs) {
    const auto& own = supervised[name];
    auto pid = program.pid != 0 ? program.pid : static_cast<std::uint64_t>(own.pid);
    table.row({name, program.connected ? "running" : "not connected", number(pid),
               pid != 0 ? age(seconds(seconds_running(pid))) : "", program.version,
               number(program.acked_version), std::to_string(own.restarts), program.detail});
  }
  auto supervisor = running_supervisor(environment);
  table.row(
      {"supervisor", supervisor ? "running" : "not running",
       supervisor ? std::to_string(*supervisor) : "",
       supervisor ? age(seconds(seconds_running(static_cast<std::uint64_t>(*supervisor)))) : "", "",
       "", "", supervisor ? "" : "nothing is restarted; `meshctl up` starts it"});
  std::fputs(table.to_string().c_str(), stdout);
}

void print_workloads(const api::Status& status) {
  if (status.workloads.empty()) {
    std::puts("\nNo workload is enrolled. Start one: meshctl sandbox run NAME -- COMMAND");
    return;
  }
  Table table({"NAMESPACE", "WORKLOAD", "ID", "STATE", "CAPTURED", "ADDRESSES", "REASON"});
  for (const auto& w : status.workloads)
    table.row({w.ns, w.name, number(w.id), w.state, w.captured, join(w.addresses, ","), w.reason});
  std::printf("\n%s", table.to_string().c_str());
}

void print_list(const char* title, const std::vector<std::string>& items) {
  if (items.empty()) return;
  std::printf("\n%s:\n", title);
  for (const auto& item : items) std::printf("  - %s\n", item.c_str());
}

void print_policies(const api::Status& status) {
  if (status.policies.empty()) return;
  Table table({"POLICY", "RULE", "DENIED", "ALLOWED", "AUDITED"});
  for (const auto& p : status.policies)
    table.row({p.policy, p.rule < 0 ? "default" : std::to_string(p.rule), std::to_string(p.denied),
               std::to_string(p.allowed), std::to_string(p.audited)});
  std::printf("\n%s", table.to_string().c_str());
}

// Columns that only grow, so that a live table stays readable.
class LiveTable {
 public:
  void print(const std::vector<std::string>& cells) {
    std::string line;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      std::string text = cells[i].empty() ? "-" : cells[i];
      if (i < widths_.size()) widths_[i] = std::max(widths_[i], text.size());
      line += text;
      if (i + 1 < cells.size() && i < widths_.size())
        line.append(widths_[i] - text.size() + 2, ' ');
    }
    std::puts(line.c_str());
    std::fflush(stdout);
  }

 private:
  std::array<std::size_t, 11> widths_ = {12, 18, 34, 14, 16, 16, 6, 26, 6, 5, 8};
};

std::vector<std::string> cells_of(const api::TapEvent& event) {
  char latency[32];
  std::snprintf(latency, sizeof latency, "%.1fms", event.duration_ms);
  std::size_t t = event.time.find('T');
  std::string time = t == std::string::npos ? event.time : event.time.substr(t + 1, 12);
  return {time,         event.source,   event.destination,
          event.route,  event.workload, event.endpoint,
          event.method, event.path,     event.status == 0 ? "" : std::to_string(event.status),
          event.flags,  latency};
}

// Without meshd the rest goes on: what still runs, what is still captured, and what to do.
Error unreachable(Error error, const Environment& environment) {
  if (error.code != Errc::unavailable) return error;
  if (auto supervisor = running_supervisor(environment))
    error.message += "\nThe supervisor (pid " + std::to_string(*supervisor) +
                     ") runs and starts it again and again: " + environment.log_of("meshd") +
                     " says why it does not stay";
  auto cgroups = find_cgroups(environment.cgroup_name);
  std::vector<std::string> running;
  if (cgroups)
    for (const auto& [name, pid] : running_programs(cgroups.value().mesh()))
      running.push_back(name + " (pid " + std::to_string(pid) + ")");
  auto attached = is_attached(environment);
  if (running.empty() && attached == false) return error;
  error.message += "\n" + (running.empty() ? "Its other programs do not run either"
                                           : "Still running: " + join(running, ", "));
  if (!attached)
    error.message += "; only root sees whether workloads are still captured and policed";
  else if (*attached)
    error.message +=
        "; its BPF programs are pinned: workloads are still captured, and policed by the last "
        "configuration. `meshctl up` brings meshd back; `meshctl disable --all` detaches them";
  else
    error.message += "; no BPF program is pinned: nothing is captured or policed";
  return error;
}

void print_audit(const api::Status::AuditStatus& audit) {
  if (audit.differences == 0) return;
  std::printf("Audits found %llu differences and repaired %llu; the last, %llu s ago: %s (%s).\n",
              static_cast<unsigned long long>(audit.differences),
              static_cast<unsigned long long>(audit.repairs),
              static_cast<unsigned long long>(audit.last_seconds_ago), audit.last.c_str(),
              audit.is_last_repaired ? "repaired" : "not repaired");
}

}  // namespace

Result<int> status(const Environment& environment, Format format) {
  auto answer = Client(environment.run_dir).get<api::Status>("/v1/status");
  if (!answer) return unreachable(std::move(answer).error(), environment);
  api::Status now = std::move(answer).value();
  for (auto& [name, program] : now.programs)  // meshd knows its own alone
    if (program.up_seconds == 0) program.up_seconds = seconds_running(program.pid);
  int code = now.state == "ready" ? kOk : kDegraded;
  if (format != Format::kTable) {
    json::object out = api::to_json(now);
    auto supervisor = running_supervisor(environment);
    out["supervisor"] = {{"running", supervisor.has_value()}, {"pid", supervisor.value_or(0)}};
    std::fputs(render(format, out).c_str(), stdout);
    return code;
  }
  std::printf("The mesh is %s: configuration %llu, %llu objects\n\n", now.state.c_str(),
              static_cast<unsigned long long>(now.snapshot.version),
              static_cast<unsigned long long>(now.snapshot.objects));
  print_programs(now, environment);
  print_workloads(now);
  print_policies(now);
  std::puts("");
  print_line(now.fast_path);
  print_audit(now.audit);
  print_list("Reasons", now.reasons);
  auto warnings = std::move(now.snapshot.problems);  // an error is a reason too
  std::erase_if(warnings, [&](const std::string& problem) {
    return std::find(now.reasons.begin(), now.reasons.end(), problem) != now.reasons.end();
  });
  print_list("Warnings", warnings);
  print_list("Notes", now.notes);
  return code;
}

Result<int> tap(const Environment& environment, const TapOptions& options, Format format) {
  std::string target = "/v1/tap?source=" + api::encode_query(options.source) +
                       "&destination=" + api::encode_query(options.destination) +
                       "&status=" + api::encode_query(options.status);
  LiveTable table;
  std::uint64_t seen = 0;
  Result<> problem = success();
  // On stderr: what reads the events need not care, and who starts requests may wait for it.
  auto on_start = [&] {
    std::fputs("The tap is on: requests show as they end; Ctrl-C ends it\n", stderr);
    if (format == Format::kTable)
      table.print({"TIME", "SOURCE", "DESTINATION", "ROUTE", "WORKLOAD", "ENDPOINT", "METHOD",
                   "PATH", "STATUS", "FLAGS", "LATENCY"});
  };
  MESH_TRY(Client(environment.run_dir).stream(target, on_start, [&](std::string_view line) {
    auto event = api::from_text<api::TapEvent>(line);
    if (!event) {
      problem = std::move(event).error();
      return false;
    }
    if (format == Format::kTable) {
      table.print(cells_of(event.value()));
    } else if (format == Format::kJson) {
      std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
    } else {
      std::printf("---\n%s", render(format, api::to_json(event.value())).c_str());
    }
    std::fflush(stdout);
    return options.count == 0 || ++seen < options.count;
  }));
  MESH_TRY(problem);
  if (options.count == 0 || seen < options.count)
    return Error{Errc::unavailable, "meshd ended the tap; `meshctl status` says how it is"};
  return kOk;
}

Result<int> dump(const Environment& environment, const std::string& what, Format format) {
  MESH_TRY(auto reply, Client(environment.run_dir).get<api::Dump>("/v1/dump/" + what));
  if (format != Format::kTable) {
    std::fputs(render(format, api::to_json(reply)).c_str(), stdout);
    return kOk;
  }
  if (reply.rows.empty()) {
    std::printf("No %s in configuration %llu.\n", what.c_str(),
                static_cast<unsigned long long>(reply.version));
    return kOk;
  }
  // Columns of counters by name are for -o json: no terminal is that wide.
  std::erase_if(reply.columns, [&](const std::string& column) {
    return std::any_of(reply.rows.begin(), reply.rows.end(), [&](const json::object& row) {
      const json::value* value = row.if_contains(column);
      return value && value->is_object();
    });
  });
  std::vector<std::string> titles;
  for (std::string column : reply.columns) {
    std::transform(column.begin(), column.end(), column.begin(), [](unsigned char c) {
      return c == '_' ? '-' : static_cast<char>(std::toupper(c));
    });
    titles.push_back(column);
  }
  Table table(titles);
  for (const auto& row : reply.rows) {
    std::vector<std::string> cells;
    for (const auto& column : reply.columns) {
      const json::value* value = row.if_contains(column);
      cells.push_back(value ? cell(*value) : "");
    }
    table.row(std::move(cells));
  }
  std::fputs(table.to_string().c_str(), stdout);
  return kOk;
}

Result<int> version(const Environment& environment, const std::string& own, Format format) {
  auto running = Client(environment.run_dir).get<api::Version>("/v1/version", seconds(5));
  if (format != Format::kTable) {
    json::object out = {{"meshctl", own}};
    out["meshd"] = running ? json::value(running.value().version) : json::value(nullptr);
    std::fputs(render(format, out).c_str(), stdout);
    return kOk;
  }
  std::printf("meshctl  %s\nmeshd    %s\n", own.c_str(),
              running ? running.value().version.c_str() : "not running");
  return kOk;
}

}  // namespace mesh::cli
