// Text -> trees. YAML comes from yaml-cpp's events, strict JSON from Boost's (yaml-cpp knows
// neither surrogate pairs nor tabs); both feed one TreeBuilder, which keeps the limits and the
// lines.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <boost/json.hpp>
#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <sstream>

#include "config/object.h"
#include "config/path.h"
#include "config/yaml.h"

namespace mesh::config {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxText = 16u << 20;
constexpr std::size_t kMaxObjects = 10'000;
constexpr std::size_t kMaxValues = 1'000'000;
constexpr std::size_t kMaxDepth = 64 + 2;  // an object may sit in the items of a List

struct Stop {  // thrown inside this file only: out of the parsers' callbacks
  int line;
  std::string message;
};

struct Document {
  json::value root;
  std::map<std::string, int> lines;
};

class TreeBuilder {
 public:
  std::vector<Document> documents;

  void begin_document(int line) {
    if (documents.size() >= kMaxObjects) throw Stop{line, "too many documents in one text"};
    documents.emplace_back();
    stack_.clear();
    is_open_ = true;
  }
  void end_document() { is_open_ = false; }
  // After an error: those before it.
  std::vector<Document> take_whole() {
    if (is_open_) documents.pop_back();
    is_open_ = false;
    return std::move(documents);
  }
  bool wants_key() const {
    return !stack_.empty() && stack_.back().value.is_object() && !stack_.back().key;
  }
  void key(std::string text, int line) {
    Frame& frame = stack_.back();
    if (frame.value.get_object().contains(text)) throw Stop{line, "duplicate key '" + text + "'"};
    frame.value.get_object().emplace(text, nullptr);  // keeps the order of the text
    frame.key = std::move(text);
    note(child_path(), line);
  }
  void begin(json::value container, int line) {
    if (stack_.size() >= kMaxDepth) throw Stop{line, "nested too deeply"};
    std::string path = item_path(line);
    stack_.push_back({std::move(container), {}, std::move(path)});
  }
  void end() {
    json::value done = std::move(stack_.back().value);
    stack_.pop_back();
    place(std::move(done));
  }
  void scalar(json::value value, int line) {
    item_path(line);
    place(std::move(value));
  }

 private:
  struct Frame {
    json::value value;  // an object or an array
    std::optional<std::string> key;
    std::string path;
  };

  std::string child_path() const {
    const Frame& frame = stack_.back();
    if (frame.key) return path_of_key(frame.path, *frame.key);
    return path_of_item(frame.path, frame.value.get_array().size());
  }
  std::string item_path(int line) {
    if (stack_.empty()) {
      note("", line);  // where the content begins, not its "---"
      return "";
    }
    if (++values_ > kMaxValues) throw Stop{line, "more than a million values in one text"};
    std::string path = child_path();
    if (!stack_.back().key) note(path, line);
    return path;
  }
  void note(std::string path, int line) { documents.back().lines.emplace(std::move(path), line); }
  void place(json::value value) {
    if (stack_.empty()) {
      documents.back().root = std::move(value);
      return;
    }
    Frame& frame = stack_.back();
    if (frame.key) {
      frame.value.get_object()[*frame.key] = std::move(value);
      frame.key.reset();
    } else {
      frame.value.get_array().push_back(std::move(value));
    }
  }

  std::vector<Frame> stack_;
  std::size_t values_ = 0;
  bool is_open_ = false;
};

class YamlEvents : public YAML::EventHandler {
 public:
  explicit YamlEvents(TreeBuilder& builder) : builder_(builder) {}

  void OnDocumentStart(const YAML::Mark& mark) override { builder_.begin_document(line(mark)); }
  void OnDocumentEnd() override { builder_.end_document(); }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (builder_.wants_key()) throw Stop{line(mark), "a key must not be empty"};
    builder_.scalar(nullptr, line(mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Stop{line(mark), "aliases (*name) are not supported; write the value out"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    if (builder_.wants_key()) {
      if (value == "<<" && tag == "?")
        throw Stop{line(mark), "merge keys (<<) are not supported; write the values out"};
      return builder_.key(value, line(mark));
    }
    builder_.scalar(typed(mark, tag, value), line(mark));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    begin(mark, tag, "tag:yaml.org,2002:seq", json::array());
  }
  void OnSequenceEnd() override { builder_.end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    begin(mark, tag, "tag:yaml.org,2002:map", json::object());
  }
  void OnMapEnd() override { builder_.end(); }

 private:
  static int line(const YAML::Mark& mark) { return mark.line + 1; }

  void begin(const YAML::Mark& mark, const std::string& tag, std::string_view own_tag,
             json::value container) {
    if (builder_.wants_key()) throw Stop{line(mark), "a key must be a scalar"};
    if (tag != "?" && tag != "!" && tag != own_tag)
      throw Stop{line(mark), "the tag '" + tag + "' is not supported"};
    builder_.begin(std::move(container), line(mark));
  }

  static json::value typed(const YAML::Mark& mark, const std::string& tag,
                           const std::string& value) {
    if (tag == "?" || tag.empty()) return resolve_plain_scalar(value);
    if (tag == "!" || tag == "tag:yaml.org,2002:str") return json::string(value);
    json::value plain = resolve_plain_scalar(value);
    if ((tag == "tag:yaml.org,2002:int" && plain.is_int64()) ||
        (tag == "tag:yaml.org,2002:float" && plain.is_number()) ||
        (tag == "tag:yaml.org,2002:bool" && plain.is_bool()) ||
        (tag == "tag:yaml.org,2002:null" && plain.is_null()))
      return plain;
    throw Stop{line(mark), "the tag '" + tag + "' is not supported here"};
  }

  TreeBuilder& builder_;
};

// Handler of json::basic_parser. The text is fed line by line, so `line` is right at each event.
struct JsonEvents {
  static constexpr std::size_t max_object_size = SIZE_MAX;
  static constexpr std::size_t max_array_size = SIZE_MAX;
  static constexpr std::size_t max_key_size = SIZE_MAX;
  static constexpr std::size_t max_string_size = SIZE_MAX;
  using Code = json::error_code;

  TreeBuilder* builder = nullptr;
  int line = 1;
  std::string part;

  bool on_document_begin(Code&) {
    builder->begin_document(line);
    return true;
  }
  bool on_document_end(Code&) {
    builder->end_document();
    return true;
  }
  bool on_object_begin(Code&) {
    builder->begin(json::object(), line);
    return true;
  }
  bool on_object_end(std::size_t, Code&) {
    builder->end();
    return true;
  }
  bool on_array_begin(Code&) {
    builder->begin(json::array(), line);
    return true;
  }
  bool on_array_end(std::size_t, Code&) {
    builder->end();
    return true;
  }
  bool on_key_part(std::string_view text, std::size_t, Code&) {
    part += text;
    return true;
  }
  bool on_key(std::string_view text, std::size_t, Code&) {
    builder->key(std::exchange(part, {}).append(text), line);
    return true;
  }
  bool on_string_part(std::string_view text, std::size_t, Code&) {
    part += text;
    return true;
  }
  bool on_string(std::string_view text, std::size_t, Code&) {
    return scalar(json::string(std::exchange(part, {}).append(text)));
  }
  bool on_number_part(std::string_view, Code&) { return true; }
  bool on_int64(std::int64_t value, std::string_view, Code&) { return scalar(value); }
  bool on_uint64(std::uint64_t value, std::string_view, Code&) { return scalar(value); }
  bool on_double(double value, std::string_view, Code&) { return scalar(value); }
  bool on_bool(bool value, Code&) { return scalar(value); }
  bool on_null(Code&) { return scalar(nullptr); }
  bool on_comment_part(std::string_view, Code&) { return true; }
  bool on_comment(std::string_view, Code&) { return true; }

 private:
  bool scalar(json::value value) {
    builder->scalar(std::move(value), line);
    return true;
  }
};

constexpr std::string_view kBlank = " \t\r\n";

// Strict JSON documents one after the other; false where the text is not that.
bool read_json(std::string_view text, TreeBuilder& builder) {
  json::parse_options options;
  options.max_depth = kMaxDepth + 8;  // the builder, which knows the line, refuses first
  std::optional<json::basic_parser<JsonEvents>> parser;
  int line = 1;
  while (!text.empty()) {
    std::string_view chunk = text.substr(0, text.find('\n') + 1);
    if (chunk.empty()) chunk = text;
    text.remove_prefix(chunk.size());
    while (!chunk.empty()) {
      if (!parser) {
        chunk.remove_prefix(std::min(chunk.find_first_not_of(kBlank), chunk.size()));
        if (chunk.empty()) break;
        parser.emplace(options);
        parser->handler().builder = &builder;
      }
      parser->handler().line = line;
      json::error_code error;
      std::size_t used = parser->write_some(true, chunk.data(), chunk.size(), error);
      if (error) return false;
      chunk.remove_prefix(used);
      if (parser->done()) parser.reset();
    }
    ++line;
  }
  return !parser;  // else it ends in the middle of a document
}

void read_yaml(std::string_view text, TreeBuilder& builder) {
  std::istringstream stream{std::string(text)};
  YAML::Parser parser(stream);
  YamlEvents events(builder);
  while (parser.HandleNextDocument(events)) {
  }
}

std::optional<int> line_of_bad_byte(std::string_view text) {
  int line = 1;
  for (std::size_t i = 0; i < text.size();) {
    auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
    unsigned char c = byte(i);
    if (c == '\n') ++line;
    if (c == 0 || c == 0x7f || (c < 0x20 && kBlank.find(static_cast<char>(c)) == kBlank.npos))
      return line;
    std::size_t length = c < 0x80   ? 1
                         : c < 0xc2 ? 0
                         : c < 0xe0 ? 2
                         : c < 0xf0 ? 3
                         : c < 0xf5 ? 4
                                    : 0;
    if (length == 0 || i + length > text.size()) return line;
    for (std::size_t k = 1; k < length; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return line;
    if (length > 2) {
      unsigned char next = byte(i + 1);  // overlong forms, surrogates, past U+10FFFF
      if ((c == 0xe0 && next < 0xa0) || (c == 0xed && next > 0x9f) || (c == 0xf0 && next < 0x90) ||
          (c == 0xf4 && next > 0x8f))
        return line;
    }
    i += length;
  }
  return {};
}

// Throws Stop or a YAML::Exception; what was read before is in the builder then.
void read_documents(std::string_view text, TreeBuilder& builder) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (text.size() > kMaxText) throw Stop{1, "more than 16 MiB of text"};
  if (auto line = line_of_bad_byte(text))
    throw Stop{*line, "not UTF-8 text, or a control character"};
  std::size_t start = text.find_first_not_of(kBlank);
  if (start != std::string_view::npos && (text[start] == '{' || text[start] == '[')) {
    if (read_json(text, builder)) return;
    builder = TreeBuilder();
  }
  read_yaml(text, builder);
}

std::map<std::string, int> lines_below(const std::map<std::string, int>& lines,
                                       const std::string& path) {
  std::map<std::string, int> below;
  if (auto own = lines.find(path); own != lines.end()) below.emplace("", own->second);
  for (auto at = lines.lower_bound(path + "."); at != lines.end(); ++at) {
    if (!at->first.starts_with(path + ".")) break;
    below.emplace(at->first.substr(path.size() + 1), at->second);
  }
  return below;
}

// Takes the documents of one text apart.
class Collector {
 public:
  explicit Collector(std::string_view file) : file_(file) {}

  void add(Document document) {
    if (document.root.is_null()) return;  // an empty document
    if (!document.root.is_object())
      return error("not an object; apiVersion, kind and metadata are needed", document.lines);
    json::object& tree = document.root.get_object();
    const json::value* kind = tree.if_contains("kind");
    json::value* items = tree.if_contains("items");
    bool is_list = kind && kind->is_string() && kind->get_string().ends_with("List") && items;
    if (!is_list) return add_object(std::move(tree), std::move(document.lines));
    if (items->is_null()) return;
    if (!items->is_array()) return error("items: must be a list", document.lines);
    for (std::size_t i = 0; i < items->get_array().size(); ++i) {
      json::value& item = items->get_array()[i];
      auto lines = lines_below(document.lines, path_of_item("items", i));
      if (item.is_object())
        add_object(std::move(item.get_object()), std::move(lines));
      else
        error("an item of a List must be an object", lines);
    }
  }
  void error(std::string_view message, int line) {
    std::string place = file_.empty() ? "line " : std::string(file_) + ":";
    parsed_.errors.push_back(place + std::to_string(line) + ": " + std::string(message));
  }
  Parsed take() { return std::move(parsed_); }

 private:
  void add_object(json::object tree, std::map<std::string, int> lines) {
    if (parsed_.objects.size() >= kMaxObjects) {
      if (!std::exchange(is_full_, true))
        error("more than 10,000 objects in one text; split it", 1);
      return;
    }
    auto object = make_object(std::move(tree), std::string(file_), lines);
    if (!object) return error(object.error().message, lines);
    parsed_.objects.push_back(std::move(object).value());
  }
  // At the line of the field that the message begins with, or of what that is in.
  void error(std::string_view message, const std::map<std::string, int>& lines) {
    for (std::string_view at = message.substr(0, message.find(": "));; at = parent_path(at)) {
      if (auto known = lines.find(std::string(at)); known != lines.end())
        return error(message, known->second);
      if (at.empty()) return error(message, 1);
    }
  }

  std::string_view file_;
  Parsed parsed_;
  bool is_full_ = false;
};

}  // namespace

Parsed parse_text(std::string_view text, std::string_view file) {
  TreeBuilder builder;
  std::optional<Stop> stop;
  try {
    read_documents(text, builder);
  } catch (const Stop& thrown) {
    stop = thrown;
  } catch (const YAML::Exception& exception) {
    stop = Stop{exception.mark.line + 1, exception.msg};
  }
  Collector collector(file);
  for (Document& document : builder.take_whole()) collector.add(std::move(document));
  if (stop) collector.error(stop->message, stop->line);
  return collector.take();
}

Result<std::vector<Object>> parse_objects(std::string_view text, std::string_view file) {
  Parsed parsed = parse_text(text, file);
  if (parsed.errors.empty()) return std::move(parsed.objects);
  std::string message = std::move(parsed.errors.front());
  if (parsed.errors.size() > 1)
    message += " (and " + std::to_string(parsed.errors.size() - 1) + " more)";
  return Error{Errc::invalid_argument, std::move(message)};
}

}  // namespace mesh::config
