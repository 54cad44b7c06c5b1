#include <algorithm>
#include <charconv>

#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr Field kPolicy[] = {{"selector"},
                             later("targetRef", "use selector"),
                             later("targetRefs", "use selector"),
                             {"rules"},
                             {"action"},
                             later("provider")};
constexpr Field kSelector[] = {{"matchLabels"}};
constexpr Field kRule[] = {{"from"}, {"to"}, {"when"}};
constexpr Field kFrom[] = {{"source"}};
constexpr Field kTo[] = {{"operation"}};
constexpr Field kSource[] = {{"principals"},
                             {"notPrincipals"},
                             {"requestPrincipals"},
                             {"notRequestPrincipals"},
                             {"namespaces"},
                             {"notNamespaces"},
                             {"serviceAccounts"},
                             {"notServiceAccounts"},
                             {"ipBlocks"},
                             {"notIpBlocks"},
                             later("remoteIpBlocks", "use ipBlocks"),
                             later("notRemoteIpBlocks", "use notIpBlocks"),
                             later("trustDomains"),
                             later("notTrustDomains")};
constexpr Field kOperation[] = {{"hosts"},   {"notHosts"},   {"ports"}, {"notPorts"},
                                {"methods"}, {"notMethods"}, {"paths"}, {"notPaths"}};
constexpr Field kCondition[] = {{"key"}, {"values"}, {"notValues"}};

constexpr std::string_view kHttpSource[] = {"requestPrincipals", "notRequestPrincipals"};
constexpr std::string_view kHttpOperation[] = {"hosts",      "notHosts", "methods",
                                               "notMethods", "paths",    "notPaths"};
constexpr std::size_t kMaxRules = 512;

StringMatch pattern(const std::string& text) {
  using Kind = StringMatch::Kind;
  StringMatch match;
  if (text == "*") return match;
  if (text.ends_with('*')) {
    match.kind = Kind::kPrefix;
    match.value = text.substr(0, text.size() - 1);
  } else if (text.starts_with('*')) {
    match.kind = Kind::kSuffix;
    match.value = text.substr(1);
  } else {
    match.kind = Kind::kExact;
    match.value = text;
  }
  return match;
}

// What a list of values is, whether it stands in a source or in a condition.
struct Values {
  const Fields& fields;
  std::string_view name;

  std::vector<StringMatch> patterns() const {
    std::vector<StringMatch> list;
    for (const std::string& text : fields.texts(name)) {
      StringMatch match = pattern(text);
      if (text.empty())
        fields.error(name, "must not have an empty value");
      else if (match.value.find('*') != std::string::npos)
        fields.error(name, "'" + text + "': '*' may only be the first or the last character");
      list.push_back(std::move(match));
    }
    return list;
  }
  std::vector<StringMatch> principals() const {
    std::vector<StringMatch> list = patterns();
    for (const StringMatch& match : list)
      if (match.value.starts_with("spiffe:"))
        fields.error(name, "principals are written without spiffe://");
    return list;
  }
  std::vector<IpBlock> blocks() const {
    std::vector<IpBlock> list;
    for (const std::string& text : fields.texts(name)) {
      auto block = IpBlock::parse(text);
      if (block)
        list.push_back(block.value());
      else
        fields.error(name, block.error().message);
    }
    return list;
  }
  std::vector<std::uint16_t> ports() const {
    std::vector<std::uint16_t> list;
    for (const std::string& text : fields.texts(name)) {
      std::uint16_t port = 0;
      auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
      if (error != std::errc{} || end != text.data() + text.size() || port == 0)
        fields.error(name, "must be a port from 1 to 65535, not '" + text + "'");
      list.push_back(port);
    }
    return list;
  }
  std::vector<std::string> accounts() const {  // "ns/sa"; "sa" is of the policy's namespace
    std::vector<std::string> list;
    for (const std::string& text : fields.texts(name)) {
      std::size_t slash = text.find('/');
      bool two = slash != std::string::npos && text.find('/', slash + 1) == std::string::npos;
      if (text.empty() || text.find('*') != std::string::npos ||
          (slash != std::string::npos && (!two || slash == 0 || slash + 1 == text.size())))
        fields.error(name, "must be namespace/account or account, without '*', not '" + text + "'");
      list.push_back(slash == std::string::npos ? fields.report().object().key.ns + "/" + text
                                                : text);
    }
    return list;
  }
};

bool is_empty(const SourceMatch& source) { return source == SourceMatch{}; }

class PolicyReader {
 public:
  explicit PolicyReader(PolicyPart& part) : part_(part) {}

  void rule(const Fields& fields) {
    L4Rule rule;
    http_used_ = false;
    for (const Fields& from : fields.messages("from", kFrom)) {
      auto source = from.message("source", kSource);
      if (source) rule.from.push_back(read_source(*source));
      if (!from.has("source")) from.error("source", "is required");
    }
    for (const Fields& to : fields.messages("to", kTo)) {
      auto operation = to.message("operation", kOperation);
      if (operation) rule.to.push_back(read_operation(*operation));
      if (!to.has("operation")) to.error("operation", "is required");
    }
    for (const Fields& when : fields.messages("when", kCondition)) read_condition(when, rule);
    // What HTTP alone can judge never matches in an ALLOW rule; in other rules it is left out.
    rule.never = http_used_ && part_.policy.action == AuthorizationPolicy::Action::kAllow;
    part_.policy.rules.push_back(std::move(rule));
  }

 private:
  void note_http(const Fields& fields, std::string_view name) {
    part_.http_fields.push_back(fields.path(name));
    http_used_ = true;
  }
  void note_http(const Fields& fields, std::span<const std::string_view> names) {
    for (std::string_view name : names)
      if (!fields.texts(name).empty()) note_http(fields, name);
  }

  SourceMatch read_source(const Fields& fields) {
    SourceMatch source;
    source.principals = Values{fields, "principals"}.principals();
    source.not_principals = Values{fields, "notPrincipals"}.principals();
    source.namespaces = Values{fields, "namespaces"}.patterns();
    source.not_namespaces = Values{fields, "notNamespaces"}.patterns();
    source.service_accounts = Values{fields, "serviceAccounts"}.accounts();
    source.not_service_accounts = Values{fields, "notServiceAccounts"}.accounts();
    source.ip_blocks = Values{fields, "ipBlocks"}.blocks();
    source.not_ip_blocks = Values{fields, "notIpBlocks"}.blocks();
    note_http(fields, kHttpSource);
    if (fields.is_empty()) fields.error("", "must not be empty");
    bool accounts = !source.service_accounts.empty() || !source.not_service_accounts.empty();
    bool others = !source.principals.empty() || !source.not_principals.empty() ||
                  !source.namespaces.empty() || !source.not_namespaces.empty();
    if (accounts && others)
      fields.error("", "serviceAccounts cannot stand beside principals or namespaces");
    return source;
  }

  PortMatch read_operation(const Fields& fields) {
    PortMatch ports{Values{fields, "ports"}.ports(), Values{fields, "notPorts"}.ports()};
    note_http(fields, kHttpOperation);
    if (fields.is_empty()) fields.error("", "must not be empty");
    return ports;
  }

  void read_condition(const Fields& fields, L4Rule& rule) {
    auto key = fields.required_text("key");
    if (!key) return;
    Values values{fields, "values"};
    Values not_values{fields, "notValues"};
    SourceMatch source;
    if (*key == "source.principal") {
      source.principals = values.principals();
      source.not_principals = not_values.principals();
    } else if (*key == "source.namespace") {
      source.namespaces = values.patterns();
      source.not_namespaces = not_values.patterns();
    } else if (*key == "source.serviceAccount") {
      source.service_accounts = values.accounts();
      source.not_service_accounts = not_values.accounts();
    } else if (*key == "source.ip") {
      source.ip_blocks = values.blocks();
      source.not_ip_blocks = not_values.blocks();
    } else if (*key == "destination.port") {
      rule.when_port.emplace_back(values.ports(), not_values.ports());
    } else if (key->starts_with("request.")) {
      note_http(fields, "key");
    } else {
      fields.error("key", "'" + *key + "' is not supported yet");
    }
    if (!fields.is_set("values") && !fields.is_set("notValues"))
      fields.error("", "must have values or notValues");
    if (!is_empty(source)) rule.when.push_back(std::move(source));
  }

  PolicyPart& part_;
  bool http_used_ = false;
};

// What it selects when the selector itself cannot be read: the whole namespace.
Labels read_selector(const Fields& spec) {
  Labels labels;
  const std::size_t errors = spec.report().errors();
  auto selector = spec.message("selector", kSelector);
  if (!selector) return labels;
  labels = selector->labels("matchLabels");
  bool bad = spec.report().errors() != errors ||
             (selector->has("matchLabels") && !selector->find("matchLabels")->is_object());
  selector->each_entry("matchLabels", [&](std::string_view, const boost::json::value& value,
                                          const std::string&) { bad = bad || !value.is_string(); });
  for (const auto& member : spec.find("selector")->get_object())
    bad = bad || member.key() != "matchLabels";
  return bad ? Labels() : labels;
}

}  // namespace

PolicyPart read_authorization_policy(Report& report, const std::string& root_namespace) {
  const ObjectKey& key = report.object().key;
  PolicyPart part;
  AuthorizationPolicy& policy = part.policy;
  policy.name = {key.ns, key.name};
  policy.everywhere = key.ns == root_namespace;
  Fields spec = open_spec(report, kPolicy);
  policy.selector = read_selector(spec);
  std::string action = spec.text("action").value_or("ALLOW");
  if (action == "DENY")
    policy.action = AuthorizationPolicy::Action::kDeny;
  else if (action == "AUDIT")
    policy.action = AuthorizationPolicy::Action::kAudit;
  else if (action == "CUSTOM")
    spec.error("action", action + " is not supported yet; use ALLOW, DENY or AUDIT");
  else if (action != "ALLOW")
    spec.error("action", "must be ALLOW, DENY or AUDIT, not '" + action + "'");
  PolicyReader reader(part);
  std::vector<Fields> rules = spec.messages("rules", kRule);
  if (rules.size() > kMaxRules) spec.error("rules", "more than 512 rules");
  for (const Fields& rule : rules) reader.rule(rule);
  if (rules.empty() && (action == "DENY" || action == "AUDIT"))
    spec.warn("rules", "a " + action + " policy without rules never matches");
  // A spec or targets that cannot be read may have meant anything of the namespace.
  policy.refused = report.failed();
  if (policy.refused && (spec.has("targetRef") || spec.has("targetRefs"))) policy.selector.clear();
  return part;
}

}  // namespace mesh::config
