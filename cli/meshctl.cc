// meshctl: the command line of the mesh. Wiring only: which words call what.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <set>

#include "api/messages.h"
#include "base/log.h"
#include "bpf_views.h"
#include "cgroup.h"
#include "fast_path.h"
#include "inspect.h"
#include "kinds.h"
#include "lifecycle.h"
#include "objects.h"
#include "policy_views.h"
#include "sandbox.h"
#include "supervisor.h"
#include "up_options.h"

#ifndef MESH_VERSION
#define MESH_VERSION "0.1.0"
#endif

namespace mesh::cli {
namespace {

constexpr const char* kFooter = R"(
Examples:
  sudo meshctl up                                          start this machine's mesh
  sudo meshctl sandbox run web -l app=web --detach -- python3 -m http.server 8080
  sudo meshctl apply -f rules.yaml                         Istio YAML, refused by file, line and field
  meshctl tap --destination reviews                        live requests

Each command has its own --help. Exit status: 0 done, 1 failed or refused, 2 wrong usage,
3 the mesh is not running, 4 not found, 5 degraded (status), 6 permission,
7 denied (authz check); sandbox run and exec: that of the command.)";

constexpr const char* kMesh = "This machine's mesh";
constexpr const char* kConfiguration = "Configuration";
constexpr const char* kWorkloads = "Workloads";
constexpr const char* kLooking = "Looking inside";

// Words that can never be right are wrong usage, whoever would notice them later.
template <class Check>
CLI::Validator by(Check check) {
  return CLI::Validator(
      [check](std::string& text) {
        auto checked = check(text);
        return checked ? std::string() : checked.error().message;
      },
      "");
}

Result<> check_pair(const std::string& text) {
  if (std::size_t equals = text.find('='); equals != 0 && equals != std::string::npos)
    return success();
  return Error{Errc::invalid_argument, "'" + text + "': must be NAME=VALUE"};
}

std::map<std::string, std::string> to_map(const std::vector<std::string>& pairs) {
  std::map<std::string, std::string> out;
  for (const auto& text : pairs) {
    std::size_t equals = text.find('=');
    out[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return out;
}

Result<Format> parse_format(const std::string& name) {
  if (name == "table") return Format::kTable;
  if (name == "json") return Format::kJson;
  if (name == "yaml") return Format::kYaml;
  return Error{Errc::invalid_argument, "'" + name + "': must be table, json or yaml"};
}

Result<> check_status(const std::string& text) {
  auto is_digit = [&](std::size_t at) { return text[at] >= '0' && text[at] <= '9'; };
  if (text.size() == 3 && is_digit(0) && (text.ends_with("xx") || (is_digit(1) && is_digit(2))))
    return success();
  return Error{Errc::invalid_argument, "'" + text + "': must be a status (503) or a class (5xx)"};
}

// The words of the command line and what to do once they are understood.
class CommandLine {
 public:
  CommandLine()
      : app_("An Istio-compatible service mesh that lies under the applications.", "meshctl") {
    app_.require_subcommand(1);
    app_.fallthrough();
    app_.footer(kFooter);
    app_.get_formatter()->column_width(26);
    app_.set_help_flag("-h,--help", "Print this help and exit");
    app_.add_option("--run-dir", environment_.run_dir, "Sockets, logs and process ids of the mesh")
        ->type_name("DIR")
        ->envname("UNDERMESH_RUN_DIR")
        ->capture_default_str();
    app_.add_option("--cgroup-name", environment_.cgroup_name)
        ->envname("UNDERMESH_CGROUP")
        ->group("");
    app_.add_flag_callback("--version", [] {}, "Print the versions, as `meshctl version` does");
    add_mesh_commands();
    add_configuration_commands();
    add_sandbox_commands();
    add_looking_commands();
  }

  int run(std::vector<std::string> arguments) {
    // What follows "--" is a command's own and none of our options.
    if (auto dashes = std::find(arguments.begin(), arguments.end(), "--");
        dashes != arguments.end()) {
      command_.assign(dashes + 1, arguments.end());
      has_command_ = true;
      arguments.erase(dashes, arguments.end());
    }
    if (!arguments.empty() && arguments.front() == "--version") arguments.front() = "version";
    auto word = std::find_if(arguments.begin(), arguments.end(),
                             [](const std::string& a) { return !a.starts_with('-'); });
    std::string first_word = word == arguments.begin() && word != arguments.end() ? *word : "";
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes a vector
    try {
      app_.parse(arguments);
    } catch (const CLI::ParseError& error) {
      return finish_parse(error, first_word);
    }
    if (has_command_ && !takes_command_) return usage("no command is expected after '--'");
    if (takes_command_ && command_.empty())
      return usage("the command is missing: meshctl sandbox ... NAME -- COMMAND [ARGUMENT...]");
    Result<int> result = action_();
    if (result) return result.value();
    std::fprintf(stderr, "error: %s\n", result.error().message.c_str());
    return exit_code(result.error());
  }

 private:
  int finish_parse(const CLI::ParseError& error, const std::string& first_word) {
    if (error.get_exit_code() == 0) return app_.exit(error);  // --help
    if (!first_word.empty() &&
        app_.get_subcommands([&](CLI::App* a) { return a->check_name(first_word); }).empty())
      return usage("unknown command '" + first_word + "'");
    return usage(error.what());
  }

  static int usage(const std::string& message) {
    std::fprintf(stderr, "error: %s\nRun `meshctl --help`, or `meshctl COMMAND --help`.\n",
                 message.c_str());
    return kUsage;
  }

  CLI::App* command(CLI::App& parent, const char* name, const char* description, const char* group,
                    std::function<Result<int>()> action) {
    CLI::App* sub = parent.add_subcommand(name, description);
    sub->group(group);
    sub->fallthrough();
    sub->footer("");
    sub->get_formatter()->column_width(26);
    if (action) sub->final_callback([this, action] { action_ = action; });
    return sub;
  }

  void add_format(CLI::App* sub) {
    sub->add_option_function<std::string>(
           "-o,--output", [this](const std::string& name) { format_ = parse_format(name).value(); },
           "table, json or yaml")
        ->check(by(parse_format))
        ->type_name("FORMAT");
  }

  void add_wide_format(CLI::App* sub) {
    sub->add_option_function<std::string>(
           "-o,--output",
           [this](const std::string& name) {
             is_wide_ = name == "wide";
             if (!is_wide_) format_ = parse_format(name).value();
           },
           "table, wide, json or yaml")
        ->check(CLI::IsMember({"table", "wide", "json", "yaml"}).description(""))
        ->type_name("FORMAT");
  }

  void add_state_dir(CLI::App* sub) {
    sub->add_option("--state-dir", environment_.state_dir, "Where the configuration is stored")
        ->type_name("DIR")
        ->envname("UNDERMESH_STATE_DIR")
        ->capture_default_str();
  }

  void add_namespace(CLI::App* sub) {
    sub->add_option("-n,--namespace", selection_.ns, "Namespace")
        ->type_name("NS")
        ->check(by(check_name))
        ->capture_default_str();
  }

  void add_program_options(CLI::App* sub) {
    add_state_dir(sub);
    sub->add_option("--access-log", programs_.access_log, "File for Istio's access log (off)")
        ->type_name("FILE");
    sub->add_option("--workers", programs_.workers, "Proxy threads (one for two processors)")
        ->type_name("N")
        ->check(CLI::Range(1, 1024));
    sub->add_option("--proxy-uid", programs_.proxy_uid, "Numeric uid and gid of the proxy")
        ->type_name("UID")
        ->check(CLI::Range(1u, 4294967294u))
        ->capture_default_str();
    sub->add_option("--log-level", programs_.log_level, "trace, debug, info, warn, error or off")
        ->type_name("LEVEL")
        ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}).description(""))
        ->capture_default_str();
    sub->add_option("--service-cidr", programs_.service_cidr,
                    "Addresses of services without a clusterIP")
        ->type_name("CIDR")
        ->check(by(parse_service_cidr))
        ->capture_default_str();
  }

  // Paths outlive the caller's directory: programs get absolute ones.
  void make_absolute() {
    for (std::string* path :
         {&environment_.run_dir, &environment_.state_dir, &programs_.access_log}) {
      if (path->empty()) continue;
      auto whole = std::filesystem::absolute(*path).lexically_normal();
      *path = whole.has_filename() ? whole : whole.parent_path();  // "run/"
    }
    programs_.bin_dir = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  }

  void add_mesh_commands();
  void add_configuration_commands();
  void add_sandbox_commands();
  void add_looking_commands();
  void add_bpf_commands();
  void add_policy_commands();
  void add_policy_list();
  void add_datapath_commands();
  void add_sandbox_run(CLI::App& sandbox);

  CLI::App app_;
  CLI::App* up_ = nullptr;
  std::function<Result<int>()> action_;
  Environment environment_;
  ProgramOptions programs_;
  Format format_ = Format::kTable;
  bool is_wide_ = false;  // of a table
  Selection selection_;
  SandboxSpec sandbox_;
  TapOptions tap_;
  AuthzQuestion authz_;
  PolicySelection policies_;
  std::vector<std::string> files_, labels_, annotations_, command_;
  std::string what_;
  std::string from_;  // of dns lookup
  unsigned seconds_ = 0;
  bool purge_ = false, dry_run_ = false, all_ = false, takes_command_ = false, has_command_ = false;
};

void CommandLine::add_mesh_commands() {
  up_ = command(app_, "up", "Start the mesh, or take over what runs of it", kMesh, [this] {
    make_absolute();
    std::set<std::string> given;
    for (const CLI::Option* option : up_->get_options())
      if (option->count() > 0) given.insert("--" + option->get_lnames().at(0));
    return bring_up(environment_, programs_, given);
  });
  add_program_options(up_);
  auto* down =
      command(app_, "down", "End the mesh and everything of it, sandboxes too", kMesh, [this] {
        make_absolute();
        return bring_down(environment_, purge_);
      });
  down->add_flag("--purge", purge_, "Remove the stored configuration too");
  add_state_dir(down);
  auto* check_command = command(app_, "check", "Say what this machine lacks, each with its remedy",
                                kMesh, [this] { return check(environment_, format_); });
  add_format(check_command);
  auto* disable = command(app_, "disable", "Take one workload out of the mesh, or all at once",
                          kMesh, [this]() -> Result<int> {
                            if (all_ && selection_.name.empty())
                              return disable_everything(environment_);
                            if (!all_ && !selection_.name.empty())
                              return disable_workload(environment_, selection_.ns, selection_.name);
                            return usage("disable: either a WORKLOAD or --all");
                          });
  disable->add_option("WORKLOAD", selection_.name, "Name of its WorkloadEntry")->type_name("");
  disable->add_flag("--all", all_,
                    "Detach every BPF program, until the next up; works with meshd dead");
  add_namespace(disable);
  auto* supervise_command = command(app_, "supervise", "", "", [this]() -> Result<int> {
    make_absolute();
    MESH_TRY(init_logging("supervisor", "info"));
    MESH_TRY(auto cgroups, find_cgroups(environment_.cgroup_name));
    programs_.cgroup = cgroups.root;
    MESH_TRY(supervise(environment_, programs_));
    return kOk;
  });
  add_program_options(supervise_command);
}

void CommandLine::add_configuration_commands() {
  auto* apply_command =
      command(app_, "apply", "Create or change objects from files", kConfiguration,
              [this] { return apply(environment_, files_, dry_run_); });
  apply_command->add_option("-f,--filename", files_, "File, directory, or - for standard input")
      ->type_name("FILE")
      ->required();
  apply_command->add_flag("--dry-run", dry_run_, "Say what would happen, change nothing");

  auto* delete_command = command(
      app_, "delete", "Delete objects, by name or from files", kConfiguration,
      [this]() -> Result<int> {
        bool by_name = !selection_.kind.empty() && !selection_.name.empty();
        if (by_name == !files_.empty() || (selection_.kind.empty() != selection_.name.empty()))
          return usage("delete: either KIND NAME or -f FILE");
        return by_name ? delete_object(environment_, selection_)
                       : delete_files(environment_, files_);
      });
  delete_command->add_option("KIND", selection_.kind, "VirtualService (vs), Service (svc), ...")
      ->check(by(need_kind))
      ->type_name("");
  delete_command->add_option("NAME", selection_.name, "Name of the object")->type_name("");
  delete_command->add_option("-f,--filename", files_, "File, directory, or - for standard input")
      ->type_name("FILE");
  add_namespace(delete_command);

  auto* get_command = command(app_, "get", "Show objects", kConfiguration,
                              [this] { return get(environment_, selection_, format_); });
  get_command
      ->add_option("KIND", selection_.kind, "VirtualService (vs), Service (svc), ..., or all")
      ->check(by(need_kinds))
      ->type_name("")
      ->required();
  get_command->add_option("NAME", selection_.name, "Name of the object")->type_name("");
  get_command->add_flag("-A,--all-namespaces", selection_.all_namespaces, "Of every namespace");
  add_namespace(get_command);
  add_format(get_command);

  auto* describe_command =
      command(app_, "describe", "Show an object with its state and problems", kConfiguration,
              [this] { return describe(environment_, selection_); });
  describe_command->add_option("KIND", selection_.kind, "VirtualService (vs), Service (svc), ...")
      ->check(by(need_kind))
      ->type_name("")
      ->required();
  describe_command->add_option("NAME", selection_.name, "Name of the object")
      ->type_name("")
      ->required();
  add_namespace(describe_command);

  auto* validate_command =
      command(app_, "validate", "Check files without a mesh, by file, line and field",
              kConfiguration, [this] { return validate(files_); });
  validate_command->add_option("-f,--filename", files_, "File, directory, or - for standard input")
      ->type_name("FILE")
      ->required();
}

void CommandLine::add_sandbox_run(CLI::App& sandbox) {
  auto* run = command(sandbox, "run", "Start a command as a workload of its own", "", [this] {
    sandbox_.labels = to_map(labels_);
    sandbox_.annotations = to_map(annotations_);
    sandbox_.ns = selection_.ns;
    sandbox_.command = command_;
    if (!sandbox_.log.empty()) sandbox_.log = std::filesystem::absolute(sandbox_.log);
    return run_sandbox(environment_, sandbox_);
  });
  run->group("Commands");
  run->footer(R"(
The command starts once the workload is enrolled, in a network, mount and PID namespace and a
control group of its own. In the foreground its input, output, signals and exit status pass
through; it ends with meshctl, also with kill -9.

Example:
  sudo meshctl sandbox run reviews-v1 -l app=reviews,version=v1 --service-account reviews -- ./reviews)");
  run->add_option("NAME", sandbox_.name, "Name of the workload")
      ->type_name("")
      ->check(by(check_name))
      ->required();
  add_namespace(run);
  run->add_option("-l,--labels", labels_, "Labels that services select by: k=v,...")
      ->type_name("K=V,...")
      ->delimiter(',')
      ->check(by(check_pair))
      ->allow_extra_args(false);
  run->add_option("--service-account", sandbox_.service_account,
                  "Its identity in policies (default)")
      ->type_name("NAME");
  run->add_option("--annotation", annotations_, "Annotation K=V of its WorkloadEntry; repeatable")
      ->type_name("K=V")
      ->check(by(check_pair))
      ->allow_extra_args(false);
  run->add_option("--env", sandbox_.environment, "Environment variable NAME=VALUE; repeatable")
      ->type_name("NAME=VALUE")
      ->check(by(check_pair))
      ->allow_extra_args(false);
  auto* detach = run->add_flag("--detach", sandbox_.detach,
                               "Return once the command runs, and leave it running");
  run->add_option("--log", sandbox_.log,
                  "With --detach: file for its output (RUN-DIR/logs/sandbox-NAME.log)")
      ->needs(detach)
      ->type_name("FILE");
  run->parse_complete_callback([this] { takes_command_ = true; });
}

void CommandLine::add_sandbox_commands() {
  auto* sandbox = command(app_, "sandbox", "Run commands as workloads: run, list, exec, stop",
                          kWorkloads, nullptr);
  sandbox->require_subcommand(1);
  add_sandbox_run(*sandbox);
  auto* list = command(*sandbox, "list", "Show the sandboxes that run", "Commands",
                       [this] { return list_sandboxes(environment_, format_); });
  add_format(list);
  auto* exec = command(*sandbox, "exec", "Run a command inside a sandbox", "Commands", [this] {
    return exec_in_sandbox(environment_, selection_.ns, sandbox_.name, command_,
                           sandbox_.environment);
  });
  exec->add_option("NAME", sandbox_.name, "Name of the sandbox")
      ->type_name("")
      ->check(by(check_name))
      ->required();
  exec->add_option("--env", sandbox_.environment, "Environment variable NAME=VALUE; repeatable")
      ->type_name("NAME=VALUE")
      ->check(by(check_pair))
      ->allow_extra_args(false);
  add_namespace(exec);
  exec->parse_complete_callback([this] { takes_command_ = true; });
  auto* stop =
      command(*sandbox, "stop", "End a sandbox, or all", "Commands", [this]() -> Result<int> {
        if (all_ == !sandbox_.name.empty()) return usage("sandbox stop: either a NAME or --all");
        if (!all_) {
          MESH_TRY(stop_sandbox(environment_, selection_.ns, sandbox_.name));
          std::printf("sandbox/%s stopped\n", sandbox_.name.c_str());
          return kOk;
        }
        MESH_TRY(auto stopped, stop_all_sandboxes(environment_));
        for (const auto& name : stopped) std::printf("sandbox/%s stopped\n", name.c_str());
        if (stopped.empty()) std::puts("No sandbox runs.");
        return kOk;
      });
  stop->add_option("NAME", sandbox_.name, "Name of the sandbox")
      ->type_name("")
      ->check(by(check_name));
  stop->add_flag("--all", all_, "Every sandbox of every namespace");
  add_namespace(stop);
}

void CommandLine::add_looking_commands() {
  auto* status_command =
      command(app_, "status", "Say what runs, what is enrolled and what is wrong", kLooking,
              [this] { return status(environment_, format_); });
  add_format(status_command);

  auto* tap_command = command(app_, "tap", "Show requests as they happen", kLooking,
                              [this] { return tap(environment_, tap_, format_); });
  tap_command->add_option("--source", tap_.source, "Only requests of this workload")
      ->type_name("WORKLOAD");
  tap_command->add_option("--destination", tap_.destination, "Only requests to this service")
      ->type_name("SERVICE");
  tap_command->add_option("--status", tap_.status, "Only responses of this status: 503, or 5xx")
      ->type_name("STATUS")
      ->check(by(check_status));
  tap_command->add_option("--count", tap_.count, "End after so many requests")->type_name("N");
  add_format(tap_command);

  auto* config_command =
      command(app_, "config", "Show what the configuration was compiled to", kLooking, nullptr);
  config_command->require_subcommand(1);
  auto* dump_command = command(*config_command, "dump", "routes, clusters, endpoints or policies",
                               "Commands", [this] { return dump(environment_, what_, format_); });
  dump_command->add_option("WHAT", what_, "routes, clusters, endpoints or policies")
      ->type_name("")
      ->required()
      ->check(CLI::IsMember({"routes", "clusters", "endpoints", "policies"}).description(""));
  add_format(dump_command);

  auto* dns_command = command(app_, "dns", "Say what names mean to a workload", kLooking, nullptr);
  dns_command->require_subcommand(1);
  auto* lookup_command = command(
      *dns_command, "lookup", "What the mesh answers, or that it forwards the query", "Commands",
      [this] {
        return dump(environment_,
                    "dns?name=" + api::encode_query(what_) + "&from=" + api::encode_query(from_),
                    format_);
      });
  lookup_command->add_option("NAME", what_, "As a program would ask for it: reviews, or whole")
      ->type_name("")
      ->required();
  lookup_command->add_option("--from", from_, "The workload that asks (any of namespace default)")
      ->type_name("[NAMESPACE/]WORKLOAD");
  add_format(lookup_command);

  add_policy_commands();
  add_policy_list();
  add_bpf_commands();
  add_datapath_commands();

  auto* version_command = command(app_, "version", "Versions of meshctl and of meshd", kLooking,
                                  [this] { return version(environment_, MESH_VERSION, format_); });
  add_format(version_command);
}

void CommandLine::add_policy_commands() {
  auto* authz = command(app_, "authz", "Say who may connect to whom, and why", kLooking, nullptr);
  authz->require_subcommand(1);
  auto* check_command = command(*authz, "check", "The verdict on a connection, its rule, and why",
                                "Commands", [this] {
                                  authz_.ns = selection_.ns;
                                  return authz_check(environment_, authz_, format_);
                                });
  check_command->footer(R"(
What the kernel decides at both ends, from the rows that it has: the client's egress
(NetworkPolicy), the server's ingress (AuthorizationPolicy, NetworkPolicy, mode). A service is
checked for each endpoint that the client may be sent to; without a port, every range of ports
that is treated differently. Nothing is sent.

  --from  [NAMESPACE/]WORKLOAD or IP
  --to    [service/|workload/][NAMESPACE/]NAME[:PORT], a host of the mesh, or IP[:PORT]; a NAME is
          a service where there is one, as for who dials it, and of the client's namespace

Examples:
  meshctl authz check --from shop/cart --to reviews:9080
  meshctl authz check --from 192.0.2.7 --to workload/db:3306
  meshctl authz check --from cart --to 10.77.0.53:53 --udp -o json

Exit status: 0 allowed, 7 denied, or allowed only in part (PARTLY), 4 no such name, 1 a service
without endpoints.)");
  check_command->add_option("--from", authz_.from, "Who connects: a workload or an address")
      ->type_name("WORKLOAD|IP")
      ->required();
  check_command->add_option("--to", authz_.to, "Where to: a workload, service or address")
      ->type_name("NAME|IP[:PORT]")
      ->required();
  check_command->add_flag("--udp", authz_.udp, "A datagram instead of a TCP connection");
  add_namespace(check_command);
  add_format(check_command);
}

void CommandLine::add_policy_list() {
  auto* policy = command(app_, "policy", "Show the policies, and what they did", kLooking, nullptr);
  policy->require_subcommand(1);
  auto* list = command(*policy, "list", "Each policy: what it selects, its state, its counts",
                       "Commands", [this] {
                         policies_.ns = selection_.ns;
                         policies_.all_namespaces = selection_.all_namespaces;
                         policies_.wide = is_wide_;
                         return policy_list(environment_, policies_, format_);
                       });
  list->footer(R"(
SELECTS counts the workloads that this node polices. DENIED and ALLOWED count connections that it
decided, AUDITED those that an AUDIT policy matched; both ends of a connection on one node count.
A policy that is refused denies what it selects (an AUDIT policy audits nothing); -o wide says why.
-o json has the counts by rule.

Examples:
  meshctl policy list -A
  meshctl policy list -n shop -o wide)");
  add_namespace(list);
  list->add_flag("-A,--all-namespaces", selection_.all_namespaces, "Of every namespace");
  add_wide_format(list);
}

void CommandLine::add_bpf_commands() {
  auto* bpf = command(app_, "bpf", "Show what is in the kernel: progs, maps, stats, flows",
                      kLooking, nullptr);
  bpf->require_subcommand(1);
  auto* programs = command(*bpf, "progs", "BPF programs, and where they are attached", "Commands",
                           [this] { return bpf_programs(environment_, format_); });
  add_format(programs);
  auto* maps = command(*bpf, "maps", "BPF maps: how full they are, and their memory", "Commands",
                       [this] { return bpf_maps(environment_, format_); });
  add_format(maps);
  auto* stats =
      command(*bpf, "stats", "The kernel's counters, and the time its programs take", "Commands",
              [this] { return bpf_stats(environment_, std::chrono::seconds(seconds_), format_); });
  stats
      ->add_option("--seconds", seconds_, "Watch so long: runs, time and what is counted meanwhile")
      ->type_name("N")
      ->check(CLI::Range(1u, 3600u));
  add_format(stats);
  auto* flows = command(*bpf, "flows", "Open L4 connections of enrolled workloads, by their bytes",
                        "Commands", [this] { return bpf_flows(environment_, is_wide_, format_); });
  flows->footer(R"(
TCP that goes past the proxy, both ends of it on this node; and UDP of the last minute, where a
policy may have to tell an answer from a question: of the rest the kernel remembers nothing.
AGE is that of the connection. -o wide adds the policy that allowed it and the own end.)");
  add_wide_format(flows);
}

void CommandLine::add_datapath_commands() {
  auto* datapath =
      command(app_, "datapath", "Switches of the kernel's part: fastpath", kMesh, nullptr);
  datapath->require_subcommand(1);
  auto* fast =
      command(*datapath, "fastpath", "The same-node fast path, off by default: on, off or status",
              "Commands", nullptr);
  fast->require_subcommand(1);
  command(*fast, "on", "Switch it on, for good, where its self-test passes", "Commands",
          [this] { return switch_fast_path(environment_, true); });
  command(*fast, "off", "Switch it off, for good; open connections go on by TCP", "Commands",
          [this] { return switch_fast_path(environment_, false); });
  auto* shown = command(*fast, "status", "Whether it is on, and why not", "Commands",
                        [this] { return fast_path_status(environment_, format_); });
  add_format(shown);
}

}  // namespace
}  // namespace mesh::cli

int main(int argc, char** argv) {
  mesh::cli::CommandLine line;
  return line.run(std::vector<std::string>(argv + 1, argv + argc));
}
