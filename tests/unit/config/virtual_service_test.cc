#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

std::string virtual_service(std::string_view spec) {
  return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: "
         "books}\nspec:\n" +
         std::string(spec);
}

// One http rule, from line 7 on, at two spaces.
std::string rule(std::string_view fields) {
  return virtual_service(
      "  hosts: [reviews]\n  http:\n  - route: [{destination: {host: reviews}}]\n" +
      std::string(fields));
}

VirtualServicePtr only(std::string_view text) {
  auto compiled = compile_text(text);
  for (const auto& problem : compiled.problems)
    EXPECT_NE(problem.severity, Problem::Severity::kError) << problem.to_string();
  EXPECT_EQ(compiled.snapshot->virtual_services.size(), 1u);
  return compiled.snapshot->virtual_services.empty() ? std::make_shared<const VirtualService>()
                                                     : compiled.snapshot->virtual_services[0];
}

TEST(VirtualService, ReadsEveryFieldOfARoute) {
  auto service = only(virtual_service(R"(
  hosts: [reviews, "*.Example.com", other.svc.cluster.local]
  gateways: [mesh, gw, istio-system/gw, ./own, old.istio-system.svc.cluster.local]
  exportTo: ["*"]
  http:
  - name: one
    match:
    - name: m
      uri: {prefix: /a}
      ignoreUriCase: true
      scheme: {exact: http}
      method: {regex: GET|HEAD}
      authority: {exact: reviews}
      headers: {End-User: {exact: jason}, x-any: {}, x-star: {regex: "*"}}
      withoutHeaders: {x-no: {prefix: a}}
      queryParams: {q: {exact: ""}}
      port: 9080
      sourceLabels: {app: productpage}
      sourceNamespace: books
      gateways: [mesh]
    route:
    - destination: {host: reviews, subset: v1, port: {number: 9080}}
      weight: 30
      headers: {request: {set: {a: b}}}
    - destination: {host: ratings.other.svc.cluster.local}
      weight: 10
    timeout: 1m2.5s
    fault:
      delay: {fixedDelay: 5s, percentage: {value: 0.0001}}
      abort: {httpStatus: 503, percentage: {value: 12.3456}}
    headers:
      request: {set: {X-A: "100%%"}, add: {x-b: c}, remove: [X-C]}
      response: {set: {server: x}, remove: [x-powered-by]}
  - route: [{destination: {host: reviews}, weight: 0}]
)"));
  EXPECT_THAT(service->hosts, ElementsAre("reviews.books.svc.cluster.local", "*.example.com",
                                          "other.svc.cluster.local"));
  EXPECT_THAT(service->gateways,
              ElementsAre("mesh", "books/gw", "istio-system/gw", "books/own", "istio-system/old"));
  const HttpRoute& route = service->http.at(0);
  const HttpMatch& match = route.matches.at(0);
  EXPECT_TRUE(match.uri->matches("/ABC"));
  EXPECT_FALSE(match.uri->matches("/b"));
  EXPECT_TRUE(match.method->matches("HEAD"));
  EXPECT_FALSE(match.method->matches("HEADS"));
  EXPECT_EQ(match.headers.at(0).first, "end-user");
  EXPECT_EQ(match.headers.at(1).second.kind, StringMatch::Kind::kPresent);
  EXPECT_EQ(match.headers.at(2).second.kind, StringMatch::Kind::kPresent);
  EXPECT_EQ(match.query_params.at(0).second.kind, StringMatch::Kind::kExact);
  EXPECT_EQ(match.port, 9080);
  EXPECT_THAT(match.source_labels, ElementsAre(Pair("app", "productpage")));
  EXPECT_EQ(match.source_namespace, "books");
  EXPECT_THAT(match.gateways, ElementsAre("mesh"));
  EXPECT_EQ(route.destinations.at(0).host, "reviews.books.svc.cluster.local");
  EXPECT_EQ(route.destinations.at(0).subset, "v1");
  EXPECT_EQ(route.destinations.at(0).port, 9080);
  EXPECT_THAT(route.destinations.at(0).request_headers.set, ElementsAre(Pair("a", "b")));
  EXPECT_EQ(route.total_weight, 40u);
  EXPECT_EQ(route.timeout, Milliseconds(62'500));
  EXPECT_EQ(route.fault.delay, Milliseconds(5000));
  EXPECT_EQ(route.fault.delay_ppm, 1u);
  EXPECT_EQ(route.fault.abort_status, 503);
  EXPECT_EQ(route.fault.abort_ppm, 123'456u);
  EXPECT_THAT(route.request_headers.set, ElementsAre(Pair("x-a", "100%")));
  EXPECT_THAT(route.request_headers.add, ElementsAre(Pair("x-b", "c")));
  EXPECT_THAT(route.request_headers.remove, ElementsAre("x-c"));
  EXPECT_THAT(route.response_headers.set, ElementsAre(Pair("server", "x")));
  EXPECT_EQ(service->http.at(1).total_weight, 1u) << "a single destination takes all";
}

TEST(VirtualService, TakesHostAndAuthorityForOneHeader) {
  auto set = [](std::string_view headers) {
    return only(rule("    headers: {request: {" + std::string(headers) + "}}\n"))
        ->http.at(0)
        .request_headers;
  };
  EXPECT_THAT(set("set: {':authority': a.b}").set, ElementsAre(Pair("host", "a.b")));
  EXPECT_THAT(set("add: {Host: a.b}").set, ElementsAre(Pair("host", "a.b")));
  EXPECT_THAT(set("set: {host: x}, add: {host: z}").set, ElementsAre(Pair("host", "x")));
  EXPECT_THAT(set("set: {host: x}, add: {host: z}").add, IsEmpty());
}

TEST(VirtualService, TakesNoPercentageForNone) {
  auto service = only(rule("    fault: {abort: {httpStatus: 500}, delay: {fixedDelay: 1s}}\n"));
  EXPECT_EQ(service->http[0].fault.abort_ppm, 0u);
  EXPECT_EQ(service->http[0].fault.delay_ppm, 0u);
}

TEST(VirtualService, TakesTheDeprecatedPercentOfDelays) {
  auto service = only(rule("    fault: {delay: {fixedDelay: 1s, percent: 10}}\n"));
  EXPECT_EQ(service->http[0].fault.delay_ppm, 100'000u);
}

TEST(VirtualService, TakesAZeroTimeoutForDisabled) {
  EXPECT_EQ(only(rule("    timeout: 0s\n"))->http[0].timeout, std::nullopt);
}

TEST(VirtualService, AcceptsWhatMeansWhatHappensAnyway) {
  for (std::string_view fields :
       {"    retries: {attempts: 0}\n", "    mirrors: []\n", "    rewrite: null\n",
        "    match: []\n", "    corsPolicy: null\n", "    match: [{headers: null}]\n"})
    EXPECT_THAT(validate_text(rule(fields)), IsEmpty()) << fields;
  EXPECT_THAT(
      validate_text(virtual_service("  hosts: [a]\n  tls: []\n  tcp: []\n  http:\n  - route: "
                                    "[{destination: {host: a}}]\n")),
      IsEmpty());
}

struct Case {
  std::string text;
  std::vector<std::string> problems;  // without the object's name
};

std::vector<std::string> with_object(const std::vector<std::string>& problems) {
  std::vector<std::string> full;
  for (const std::string& problem : problems) {
    std::size_t at = problem.find(": ", problem.find("t.yaml")) + 2;
    full.push_back(problem.substr(0, at) + "VirtualService books/r: " + problem.substr(at));
  }
  return full;
}

TEST(VirtualService, RefusesWithPlaceAndRemedy) {
  const std::string ok_route = "  - route: [{destination: {host: a}}]\n";
  const Case cases[] = {
      // unknown and not supported yet
      {rule("    rewrit: {uri: /}\n"),
       {"error t.yaml:8: spec.http[0].rewrit: unknown field (did you mean rewrite?)"}},
      {rule("    rewrite: {uri: /}\n"),
       {"error t.yaml:8: spec.http[0].rewrite: not supported yet; remove the field"}},
      {rule("    redirect: {uri: /}\n"),
       {"error t.yaml:8: spec.http[0].redirect: not supported yet; remove the field"}},
      {rule("    directResponse: {status: 200}\n"),
       {"error t.yaml:8: spec.http[0].directResponse: not supported yet; remove the field"}},
      {rule("    delegate: {name: x}\n"),
       {"error t.yaml:8: spec.http[0].delegate: not supported yet; remove the field"}},
      {rule("    mirror: {host: x}\n"),
       {"error t.yaml:8: spec.http[0].mirror: not supported yet; remove the field"}},
      {rule("    mirrors: [{destination: {host: x}}]\n"),
       {"error t.yaml:8: spec.http[0].mirrors: not supported yet; remove the field"}},
      {rule("    mirrorPercentage: {value: 5}\n"),
       {"error t.yaml:8: spec.http[0].mirrorPercentage: not supported yet; remove the field"}},
      {rule("    corsPolicy: {}\n"),
       {"error t.yaml:8: spec.http[0].corsPolicy: not supported yet; remove the field"}},
      {rule("    retries: {attempts: 3}\n"),
       {"error t.yaml:8: spec.http[0].retries: not supported yet; remove it, or write attempts: "
        "0"}},
      {rule("    match:\n    - statPrefix: x\n"),
       {"error t.yaml:9: spec.http[0].match[0].statPrefix: not supported yet; remove the field"}},
      {rule("    match:\n    - Uri: {exact: /}\n"),
       {"error t.yaml:9: spec.http[0].match[0].Uri: unknown field (did you mean uri?)"}},
      {rule("    match:\n    - uri: {suffix: /}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri.suffix: unknown field"}},
      {rule("    match:\n    - headers: {'@request.auth.claims.x': {exact: a}}\n"),
       {"error t.yaml:9: spec.http[0].match[0].headers[\"@request.auth.claims.x\"]: claims are not "
        "supported yet; remove the condition"}},
      {virtual_service("  hosts: [a]\n  tls: [{}]\n  tcp: [{}]\n  http:\n" + ok_route),
       {"error t.yaml:6: spec.tls: not supported yet; remove the field",
        "error t.yaml:7: spec.tcp[0].route: is required"}},
      {virtual_service(
           "  hosts: [a]\n  tcp:\n  - match: [{destinationSubnets: [x], sourceSubnet: "
           "10.0.0.0/8, port: 0}]\n    route: [{destination: {host: a}, headers: {}}]\n"),
       {"error t.yaml:7: spec.tcp[0].match[0].sourceSubnet: not supported yet; remove the field",
        "error t.yaml:7: spec.tcp[0].match[0].destinationSubnets: not an IP address: 'x'",
        "error t.yaml:7: spec.tcp[0].match[0].port: must be a whole number from 1 to 65535, not 0 "
        "(a number)",
        "error t.yaml:8: spec.tcp[0].route[0].headers: unknown field"}},
      {virtual_service("  hosts: [a]\n  tcp:\n  - route: [{destination: {host: a}}, {destination: "
                       "{host: b}}]\n  - route: [{destination: {host: a}}]\n"),
       {"error t.yaml:7: spec.tcp[0].route: all weights are 0; give each destination its weight",
        "warning t.yaml:8: spec.tcp[1]: is never reached: spec.tcp[0] matches every connection "
        "(IST0130)"}},
      {virtual_service("  hosts: [a]\n  exportTo: [x]\n  http:\n" + ok_route),
       {"error t.yaml:6: spec.exportTo: 'x' is not supported yet for a VirtualService, only '*' "
        "(clients of every namespace); remove the field"}},
      {virtual_service("  hosts: [a]\n  exportTo: [.]\n  http:\n" + ok_route),
       {"error t.yaml:6: spec.exportTo: '.' is not supported yet for a VirtualService, only '*' "
        "(clients of every namespace); remove the field, and give each match sourceNamespace: "
        "books"}},
      {virtual_service("  hosts: [a]\n  exportTo: [., '*']\n  http:\n" + ok_route), {}},
      {rule("    fault: {delay: {exponentialDelay: 1s}}\n"),
       {"error t.yaml:8: spec.http[0].fault.delay.exponentialDelay: not supported yet; remove the "
        "field"}},
      {rule("    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}\n"),
       {"error t.yaml:8: spec.http[0].fault.abort.grpcStatus: not supported yet; remove the "
        "field"}},
      // hosts
      {virtual_service("  http:\n" + ok_route),
       {"error t.yaml:4: spec.hosts: is required (delegates are not supported yet)"}},
      {virtual_service("  hosts: ['*']\n  http:\n" + ok_route),
       {"error t.yaml:5: spec.hosts[0]: '*' is for gateways; traffic inside the mesh needs "
        "names"}},
      {virtual_service("  hosts: [a, 'a b', A]\n  http:\n" + ok_route),
       {"error t.yaml:5: spec.hosts[1]: must be a DNS name, '*.suffix' or '*', not 'a b'",
        "error t.yaml:5: spec.hosts[2]: is given twice"}},
      {virtual_service("  hosts: a\n  http:\n" + ok_route),
       {"error t.yaml:5: spec.hosts: must be a list of strings, not 'a'"}},
      {virtual_service("  hosts: [a]\n"), {"error t.yaml:4: spec.http: is required, or tcp"}},
      // routes and weights
      {virtual_service("  hosts: [a]\n  http:\n  - name: x\n"),
       {"error t.yaml:7: spec.http[0].route: is required"}},
      {virtual_service("  hosts: [a]\n  http:\n  - route:\n    - weight: 1\n"),
       {"error t.yaml:8: spec.http[0].route[0].destination: is required"}},
      {virtual_service("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: '*'}\n"),
       {"error t.yaml:8: spec.http[0].route[0].destination.host: must be the name of a service"}},
      {virtual_service("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n    - "
                       "destination: {host: b}\n"),
       {"error t.yaml:7: spec.http[0].route: all weights are 0; give each destination its "
        "weight"}},
      {virtual_service("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n      "
                       "weight: -1\n"),
       {"error t.yaml:9: spec.http[0].route[0].weight: must be a whole number from 0 to "
        "2147483647, not -1 (a number)"}},
      {virtual_service("  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a, port: "
                       "{number: '80'}}\n"),
       {"error t.yaml:8: spec.http[0].route[0].destination.port.number: must be a whole number "
        "from 1 to 65535, not '80'"}},
      // matches
      {rule("    match:\n    - uri: {exact: /, prefix: /}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri: takes one of exact, prefix and regex"}},
      {rule("    match:\n    - uri: {prefix: ''}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri.prefix: must not be empty"}},
      {rule("    match:\n    - uri: {regex: '('}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri.regex: not an RE2 expression: missing ): ("}},
      {rule("    match:\n    - uri: {regex: '*'}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri.regex: not an RE2 expression: no argument for "
        "repetition operator: *"}},
      {rule("    match:\n    - uri: {regex: " + std::string(1025, 'a') + "}\n"),
       {"error t.yaml:9: spec.http[0].match[0].uri.regex: longer than 1024 characters"}},
      {rule("    match:\n    - headers: {end-user: jason}\n"),
       {"error t.yaml:9: spec.http[0].match[0].headers.end-user: must be an object with exact, "
        "prefix or regex, not 'jason'"}},
      {rule("    match:\n    - headers: {'a b': {exact: x}}\n"),
       {"error t.yaml:9: spec.http[0].match[0].headers[\"a b\"]: not the name of a header"}},
      {rule("    match:\n    - sourceLabels: {version: 1}\n"),
       {"error t.yaml:9: spec.http[0].match[0].sourceLabels.version: must be a string, not 1 (a "
        "number); write it in quotes"}},
      {rule("    match:\n    - port: 70000\n"),
       {"error t.yaml:9: spec.http[0].match[0].port: must be a whole number from 1 to 65535, not "
        "70000 (a number)"}},
      // timeouts and faults
      {rule("    timeout: 5\n"),
       {"error t.yaml:8: spec.http[0].timeout: must be a string, not 5 (a number); write it in "
        "quotes"}},
      {rule("    timeout: 5sec\n"),
       {"error t.yaml:8: spec.http[0].timeout: must be a duration such as 1.5s, 100ms or 1h, not "
        "'5sec'"}},
      {rule("    timeout: 1us\n"),
       {"error t.yaml:8: spec.http[0].timeout: must be whole milliseconds, not '1us'"}},
      {rule("    timeout: -1s\n"),
       {"error t.yaml:8: spec.http[0].timeout: must be from 0ms to 87600h, not '-1s'"}},
      {rule("    fault: {}\n"),
       {"error t.yaml:8: spec.http[0].fault: must have delay, abort or both"}},
      {rule("    fault: {abort: {httpStatus: 600, percentage: {value: 1}}}\n"),
       {"error t.yaml:8: spec.http[0].fault.abort.httpStatus: must be a whole number from 200 to "
        "599, not 600 (a number)"}},
      {rule("    fault: {abort: {percentage: {value: 1}}}\n"),
       {"error t.yaml:8: spec.http[0].fault.abort.httpStatus: is required"}},
      {rule("    fault: {abort: {httpStatus: 500, percentage: {value: 0.00005}}}\n"),
       {"error t.yaml:8: spec.http[0].fault.abort.percentage.value: must be 0 or at least 0.0001 "
        "(percent)"}},
      {rule("    fault: {abort: {httpStatus: 500, percentage: {value: 101}}}\n"),
       {"error t.yaml:8: spec.http[0].fault.abort.percentage.value: must be a number from 0 to "
        "100, not 101 (a number)"}},
      // headers
      {rule("    headers: {request: {set: {':path': /x}}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.set[\":path\"]: pseudo-headers cannot be "
        "changed here"}},
      {rule("    headers: {request: {set: {transfer-encoding: chunked}}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.set.transfer-encoding: the proxy writes this "
        "header itself; remove the operation"}},
      {rule("    headers: {response: {remove: [Content-Length]}}\n"),
       {"error t.yaml:8: spec.http[0].headers.response.remove: the proxy writes this header "
        "itself; remove the operation"}},
      {rule("    headers: {request: {remove: [host]}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.remove: the host cannot be removed"}},
      {rule("    headers: {request: {set: {a: '%REQ(b)%'}}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.set.a: variables (%...%) are not supported "
        "yet; write %% for a percent sign"}},
      {rule("    headers: {request: {set: {a: \"b\\r\\nc: d\"}}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.set.a: must not have control characters"}},
      {rule("    headers: {request: {set: {host: a/b}}}\n"),
       {"error t.yaml:8: spec.http[0].headers.request.set: the host must be a name or address, "
        "perhaps with a port"}},
      // warnings
      {rule("    match:\n    - headers: {method: {exact: GET}}\n"),
       {"warning t.yaml:9: spec.http[0].match[0].headers.method: ignored, as in Istio; use the "
        "field method of the match instead"}},
      {rule("  - route: [{destination: {host: b}}]\n"),
       {"warning t.yaml:8: spec.http[1]: is never reached: spec.http[0] matches every request "
        "(IST0130)"}},
  };
  for (const Case& c : cases) EXPECT_EQ(validate_text(c.text), with_object(c.problems)) << c.text;
}

TEST(VirtualService, RefusesUnknownFieldsAtTheTop) {
  EXPECT_EQ(validate_text("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: "
                          "{name: r}\nspek: {}\n")
                .at(0),
            "error t.yaml:4: VirtualService default/r: spek: unknown field (did you mean spec?)");
}

TEST(VirtualService, IgnoresStatusAndForeignMetadata) {
  EXPECT_THAT(validate_text(rule("status: {conditions: [{type: x}]}\n")), IsEmpty());
}

TEST(VirtualService, WarnsOfWhatItRefersTo) {
  auto compiled = compile_text(R"(apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{name: mysql, port: 3306}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, creationTimestamp: "2024-01-01T00:00:00Z"}
spec:
  hosts: [reviews, db]
  gateways: [mesh, gw]
  http:
  - route:
    - {destination: {host: reviews, subset: v9}, weight: 1}
    - {destination: {host: reviews, port: {number: 1}}, weight: 1}
    - {destination: {host: nobody}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, creationTimestamp: "2024-01-02T00:00:00Z"}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
)");
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre(
          "warning t.yaml:19: VirtualService default/r: spec.http[0].route[0].destination.subset: "
          "no DestinationRule has the subset 'v9' of reviews.default.svc.cluster.local yet; "
          "requests "
          "for it are answered 503",
          "warning t.yaml:20: VirtualService default/r: spec.http[0].route[1].destination.port: "
          "reviews.default.svc.cluster.local has no port 1 yet; requests for it are answered 503",
          "warning t.yaml:21: VirtualService default/r: spec.http[0].route[2].destination.host: no "
          "Service is named nobody.default.svc.cluster.local yet; requests for it are answered 503",
          "warning t.yaml:15: VirtualService default/r: spec.hosts[1]: "
          "db.default.svc.cluster.local "
          "has no HTTP port, so HTTP routes have no effect; name a port http or http-..., or set "
          "its "
          "appProtocol to http",
          "warning t.yaml:16: VirtualService default/r: spec.gateways: no Gateway is named "
          "default/gw yet",
          "warning t.yaml:26: VirtualService default/a: spec.hosts[0]: "
          "reviews.default.svc.cluster.local is already routed by VirtualService default/r, which "
          "is "
          "older; this one is not used for it in the mesh"));
  const HostRoutes* routes =
      compiled.snapshot->find_mesh_routes("reviews.default.svc.cluster.local");
  ASSERT_NE(routes, nullptr);
  EXPECT_EQ(routes->services.at(0)->name.name, "r");
}

TEST(VirtualService, ResolvesShortHostsAgainstItsOwnNamespace) {
  auto compiled = compile_text(R"(
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: other}
spec: {ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, namespace: books}
spec:
  hosts: [ratings, ratings.other, ratings.unknown, ratings.other.svc, example.com]
  http:
  - route:
    - {destination: {host: ratings.other}, weight: 1}
    - {destination: {host: ratings}, weight: 1}
)");
  const VirtualService& service = *compiled.snapshot->virtual_services.at(0);
  EXPECT_THAT(service.hosts,
              ElementsAre("ratings.books.svc.cluster.local", "ratings.other.svc.cluster.local",
                          "ratings.unknown", "ratings.other.svc.cluster.local", "example.com"));
  EXPECT_EQ(service.http[0].destinations[0].host, "ratings.other.svc.cluster.local");
  EXPECT_EQ(service.http[0].destinations[1].host, "ratings.books.svc.cluster.local");
}

}  // namespace
}  // namespace mesh::config
