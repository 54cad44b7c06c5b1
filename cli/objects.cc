#include "objects.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <set>
#include <utility>

#include "api/messages.h"
#include "client.h"
#include "config/yaml.h"
#include "kinds.h"
#include "output.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

bool is_object_file(const fs::path& path) {
  auto extension = path.extension();
  return extension == ".yaml" || extension == ".yml" || extension == ".json";
}

Result<std::string> read_text(const std::string& file) {
  if (file == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream stream(file, std::ios::binary);
  if (!stream) return errno_error(errno, file);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// Prints what became of each object, kubectl's way; true when none was refused and all acts.
bool print_results(const api::ApplyReply& reply, std::string_view suffix) {
  bool all_good = true;
  for (const auto& result : reply.results) {
    std::string name = display_name(result.object.kind, result.api_version, result.object.name);
    bool refused = result.outcome == "refused";
    all_good &= !refused;
    if (!refused)
      std::printf("%s %s%s\n", name.c_str(),
                  result.outcome == "not_found" ? "not found" : result.outcome.c_str(),
                  std::string(suffix).c_str());
    else
      std::fprintf(stderr, "%s refused\n", name.c_str());
    for (const auto& problem : result.problems)
      std::fprintf(stderr, "%s%s\n", refused ? "  " : "warning: ", problem.c_str());
  }
  if (reply.not_in_force.empty()) return all_good;
  std::fprintf(stderr,
               "error: stored, but not in force: %s; it is tried again: see `meshctl status`\n",
               reply.not_in_force.c_str());
  return false;
}

std::string created(const json::object& tree) {
  std::int64_t at = parse_time(text_at(tree, "/metadata/creationTimestamp"));
  return at == 0 ? "" : age(std::chrono::seconds(std::time(nullptr) - at));
}

std::string query_of(const Selection& selection) {
  std::string out = "/v1/objects?";
  if (!selection.kind.empty()) out += "kind=" + api::encode_query(selection.kind) + "&";
  if (!selection.all_namespaces) out += "namespace=" + api::encode_query(selection.ns) + "&";
  if (!selection.name.empty()) out += "name=" + api::encode_query(selection.name);
  return out;
}

Error no_object(const Selection& selection) {
  return {Errc::not_found, selection.kind + " " + selection.ns + "/" + selection.name +
                               " does not exist; `meshctl get " + selection.kind +
                               " -A` shows those that do"};
}

void print_table(const std::vector<api::StoredObject>& objects, const Kind& kind,
                 bool all_namespaces) {
  std::vector<std::string> columns;
  if (all_namespaces) columns.emplace_back("NAMESPACE");
  columns.emplace_back("NAME");
  for (auto column : kind.columns) columns.emplace_back(column);
  columns.emplace_back("AGE");
  bool has_refused = std::any_of(objects.begin(), objects.end(),
                                 [](const auto& object) { return object.state != "accepted"; });
  if (has_refused) columns.emplace_back("STATE");
  Table table(columns);
  for (const auto& object : objects) {
    std::vector<std::string> cells;
    if (all_namespaces) cells.push_back(text_at(object.tree, "/metadata/namespace"));
    cells.push_back(text_at(object.tree, "/metadata/name"));
    for (auto& text : kind.cells(object.tree)) cells.push_back(std::move(text));
    cells.push_back(created(object.tree));
    if (has_refused) cells.push_back(object.state);
    table.row(std::move(cells));
  }
  std::fputs(table.to_string().c_str(), stdout);
}

void print_tables(const std::vector<api::StoredObject>& objects, bool all_namespaces,
                  bool with_titles) {
  bool first = true;
  for (const Kind& kind : kinds()) {
    std::vector<api::StoredObject> of_kind;
    for (const auto& object : objects)
      if (text_at(object.tree, "/kind") == kind.kind) of_kind.push_back(object);
    if (of_kind.empty()) continue;
    if (with_titles)
      std::printf("%s%s\n", std::exchange(first, false) ? "" : "\n",
                  std::string(kind.kind).c_str());
    print_table(of_kind, kind, all_namespaces);
  }
}

void print_map(const char* title, const json::object& tree, std::string_view pointer) {
  const json::value* map = value_at(tree, pointer);
  if (!map || !map->is_object() || map->as_object().empty()) return;
  const char* head = title;
  for (const auto& [key, value] : map->as_object()) {
    std::printf("%-14s%s=%s\n", head, std::string(key).c_str(), cell(value).c_str());
    head = "";
  }
}

std::string indented(const std::string& text) {
  std::string out;
  bool at_start = true;
  for (char c : text) {
    if (at_start && c != '\n') out += "  ";
    out += c;
    at_start = c == '\n';
  }
  return out;
}

void print_description(const api::StoredObject& object) {
  const json::object& tree = object.tree;
  auto line = [](const char* title, const std::string& text) {
    if (!text.empty()) std::printf("%-14s%s\n", title, text.c_str());
  };
  line("Name:", text_at(tree, "/metadata/name"));
  line("Namespace:", text_at(tree, "/metadata/namespace"));
  line("Kind:", text_at(tree, "/kind") + " (" + text_at(tree, "/apiVersion") + ")");
  print_map("Labels:", tree, "/metadata/labels");
  print_map("Annotations:", tree, "/metadata/annotations");
  std::string since = created(tree);
  if (!since.empty())
    line("Created:", text_at(tree, "/metadata/creationTimestamp") + " (" + since + " ago)");
  line("Generation:", text_at(tree, "/metadata/generation"));
  line("File:", object.file);
  line("State:", object.state);
  for (const auto& problem : object.problems) line("Problem:", problem);
  for (const auto& [key, value] : tree) {
    if (key == "apiVersion" || key == "kind" || key == "metadata") continue;
    std::string title(key);
    title[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(title[0])));
    std::printf("%s:\n%s", title.c_str(), indented(config::to_yaml(value)).c_str());
  }
}

struct Loaded {
  std::vector<config::Object> objects;
  bool has_errors = false;  // files that cannot be read or parsed; told already
};

// What `verb` is to act on. Of a file with an error nothing acts, but all of it is validated.
Result<Loaded> load(const std::vector<std::string>& arguments, std::string_view verb) {
  MESH_TRY(auto files, list_files(arguments));
  Loaded out;
  for (const auto& file : files) {
    config::Parsed parsed;
    if (auto text = read_text(file))
      parsed = config::parse_text(text.value(), file == "-" ? "stdin" : file);
    else
      parsed.errors.push_back(text.error().message);
    for (const auto& error : parsed.errors) std::fprintf(stderr, "error: %s\n", error.c_str());
    out.has_errors |= !parsed.errors.empty();
    if (parsed.errors.empty() || verb == "validate")
      std::move(parsed.objects.begin(), parsed.objects.end(), std::back_inserter(out.objects));
  }
  if (out.objects.empty() && !out.has_errors)
    return Error{Errc::refused, "no objects passed to " + std::string(verb)};
  return out;
}

}  // namespace

Result<std::vector<std::string>> list_files(const std::vector<std::string>& arguments) {
  std::vector<std::string> out;
  for (const auto& argument : arguments) {
    std::error_code ec;
    if (argument == "-" || !fs::is_directory(argument, ec)) {
      out.push_back(argument);
      continue;
    }
    std::vector<std::string> found;
    for (fs::recursive_directory_iterator it(argument, ec), end; !ec && it != end; it.increment(ec))
      if (it->is_regular_file(ec) && is_object_file(it->path())) found.push_back(it->path());
    if (ec) return errno_error(ec.value(), argument);
    if (found.empty())
      return Error{Errc::invalid_argument,
                   argument + ": no *.yaml, *.yml or *.json file in this directory"};
    std::sort(found.begin(), found.end());
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

Result<int> apply(const Environment& environment, const std::vector<std::string>& files,
                  bool dry_run) {
  MESH_TRY(auto loaded, load(files, "apply"));
  if (loaded.objects.empty()) return kFailed;
  api::ApplyRequest request;
  request.dry_run = dry_run;
  for (auto& object : loaded.objects)
    request.objects.push_back({std::move(object.tree), object.file, std::move(object.lines)});
  MESH_TRY(auto reply, Client(environment.run_dir).post<api::ApplyReply>("/v1/apply", request));
  bool good = print_results(reply, dry_run ? " (dry run)" : "");
  return good && !loaded.has_errors ? kOk : kFailed;
}

Result<int> delete_files(const Environment& environment, const std::vector<std::string>& files) {
  MESH_TRY(auto loaded, load(files, "delete"));
  if (loaded.objects.empty()) return kFailed;
  api::DeleteRequest request;
  for (const auto& object : loaded.objects)
    request.objects.push_back({object.key.kind, object.key.ns, object.key.name});
  MESH_TRY(auto reply, Client(environment.run_dir).post<api::ApplyReply>("/v1/delete", request));
  bool good = print_results(reply, "");
  return good && !loaded.has_errors ? kOk : kFailed;
}

Result<int> delete_object(const Environment& environment, const Selection& selection) {
  MESH_TRY(auto kind, need_kind(selection.kind));
  api::DeleteRequest request{{{std::string(kind->kind), selection.ns, selection.name}}};
  MESH_TRY(auto reply, Client(environment.run_dir).post<api::ApplyReply>("/v1/delete", request));
  if (!reply.results.empty() && reply.results[0].outcome == "not_found") {
    Selection missing = selection;
    missing.kind = kind->kind;
    return no_object(missing);
  }
  return print_results(reply, "") ? kOk : kFailed;
}

Result<int> get(const Environment& environment, const Selection& given, Format format) {
  Selection selection = given;
  MESH_TRY(auto kinds_wanted, need_kinds(given.kind));
  std::vector<api::StoredObject> objects;
  for (const auto& kind : kinds_wanted) {
    selection.kind = kind;
    MESH_TRY(auto list, Client(environment.run_dir).get<api::ObjectList>(query_of(selection)));
    for (auto& object : list.objects) objects.push_back(std::move(object));
  }
  if (objects.empty() && !selection.name.empty()) return no_object(selection);
  if (format != Format::kTable) {
    json::value out;
    if (!selection.name.empty() && objects.size() == 1) {
      out = objects[0].tree;
    } else {
      json::array items;
      for (const auto& object : objects) items.push_back(object.tree);
      out = json::object{{"apiVersion", "v1"}, {"kind", "List"}, {"items", items}};
    }
    std::fputs(render(format, out).c_str(), stdout);
  } else if (objects.empty()) {
    std::printf("No objects%s.\n", selection.all_namespaces
                                       ? ""
                                       : (" in namespace " + selection.ns + " (-A: all)").c_str());
  } else {
    bool many = kinds_wanted.size() > 1 || kinds_wanted[0].empty();
    print_tables(objects, selection.all_namespaces, many);
  }
  return kOk;
}

Result<int> describe(const Environment& environment, const Selection& given) {
  Selection selection = given;
  MESH_TRY(auto kind, need_kind(selection.kind));
  selection.kind = kind->kind;
  MESH_TRY(auto list, Client(environment.run_dir).get<api::ObjectList>(query_of(selection)));
  if (list.objects.empty()) return no_object(selection);
  for (std::size_t i = 0; i < list.objects.size(); ++i) {
    if (i > 0) std::puts("\n---\n");
    print_description(list.objects[i]);
  }
  return kOk;
}

// Together, as meshd would: some errors are between objects, and what a policy may say depends on
// the services of what it selects. What is stored in a mesh that runs takes no part.
Result<int> validate(const std::vector<std::string>& files) {
  MESH_TRY(auto loaded, load(files, "validate"));
  std::vector<config::ObjectPtr> objects;
  for (auto& object : loaded.objects)
    objects.push_back(std::make_shared<config::Object>(std::move(object)));
  auto compiled = config::compile(objects, 1, {});
  for (const auto& problem : compiled.problems) {
    bool is_error = problem.severity == config::Problem::Severity::kError;
    std::fprintf(stderr, "%s: %s\n", is_error ? "error" : "warning", problem.to_string().c_str());
  }
  const std::set<config::ObjectKey> refused(compiled.refused.begin(), compiled.refused.end());
  for (const auto& object : objects)
    std::printf("%s %s\n",
                display_name(object->key.kind, object->api_version, object->key.name).c_str(),
                refused.contains(object->key) ? "refused" : "valid");
  return refused.empty() && !loaded.has_errors ? kOk : kFailed;
}

}  // namespace mesh::cli
