// BookInfo's reviews, in three versions by environment: v1 without stars (ENABLE_RATINGS unset), v2 with
// black stars, v3 with stars of another colour (STAR_COLOR=red), which wait less long for ratings.
// Only the JDK. Paths, JSON, texts and time-outs follow the contract in ../README.md.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.FileOutputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public final class Reviews {
  private static final Pattern REVIEWS_PATH = Pattern.compile("/reviews/(\\d{1,9})");

  private static final List<String> PROPAGATED_HEADERS = List.of(
      "x-request-id", "x-ot-span-context", "x-datadog-trace-id", "x-datadog-parent-id",
      "x-datadog-sampling-priority", "traceparent", "tracestate", "x-cloud-trace-context",
      "grpc-trace-bin", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled",
      "x-b3-flags", "sw8", "end-user", "user-agent", "cookie", "authorization", "jwt");

  private final boolean ratingsEnabled = "true".equals(env("ENABLE_RATINGS", "false"));
  private final String starColor = env("STAR_COLOR", "black");
  private final Duration ratingsTimeout = Duration.ofMillis(starColor.equals("black") ? 10_000 : 2_500);
  private final String ratingsUrl = ratingsUrl();
  private final String podName = env("HOSTNAME", "unknown");
  private final String clusterName = env("CLUSTER_NAME", "null");
  private final FileOutputStream accessLog;
  private final HttpClient client;

  private Reviews(ExecutorService threads) throws IOException {
    String path = env("ACCESS_LOG", "");
    accessLog = path.isEmpty() ? null : new FileOutputStream(path, true);
    client = HttpClient.newBuilder()
        .version(HttpClient.Version.HTTP_1_1)
        .connectTimeout(ratingsTimeout)
        .executor(threads)
        .build();
  }

  private static String env(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }

  private static String ratingsUrl() {
    String domain = env("SERVICES_DOMAIN", "");
    String host = env("RATINGS_HOSTNAME", "ratings") + (domain.isEmpty() ? "" : "." + domain);
    return "http://" + host + ":" + env("RATINGS_SERVICE_PORT", "9080") + "/ratings/";
  }

  private static String quoted(String text) {
    StringBuilder out = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < 0x20) {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    return out.append('"').toString();
  }

  /** The body of ratings' answer, or null when it did not answer 200 in time. */
  private String fetchRatings(String id, HttpExchange exchange) throws InterruptedException {
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(ratingsUrl + id)).timeout(ratingsTimeout);
    for (String name : PROPAGATED_HEADERS) {
      String value = exchange.getRequestHeaders().getFirst(name);
      if (value != null) {
        request.header(name, value);
      }
    }
    var call = client.sendAsync(request.build(), HttpResponse.BodyHandlers.ofString(StandardCharsets.UTF_8));
    try {
      // The limit covers the body too, which HttpRequest's own does not.
      HttpResponse<String> response = call.get(ratingsTimeout.toMillis(), TimeUnit.MILLISECONDS);
      return response.statusCode() == 200 ? response.body() : null;
    } catch (ExecutionException | TimeoutException error) {
      call.cancel(true);
      System.err.println("call to ratings failed: " + error);
      return null;
    }
  }

  /** The "rating" member for a reviewer, with its leading comma. */
  private String rating(String reviewer, String ratings) {
    String unavailable = ", \"rating\": {\"error\": \"Ratings service is currently unavailable\"}";
    if (ratings == null) {
      return unavailable;
    }
    Matcher stars = Pattern.compile(quoted(reviewer) + "\\s*:\\s*(\\d{1,2})").matcher(ratings);
    return stars.find()
        ? ", \"rating\": {\"stars\": " + stars.group(1) + ", \"color\": " + quoted(starColor) + "}"
        : unavailable;
  }

  private String review(String reviewer, String text, String ratings) {
    return "{\"reviewer\": " + quoted(reviewer) + ", \"text\": " + quoted(text)
        + (ratingsEnabled ? rating(reviewer, ratings) : "") + "}";
  }

  private String reviews(String id, HttpExchange exchange) throws InterruptedException {
    String ratings = ratingsEnabled ? fetchRatings(id, exchange) : null;
    return "{\"id\": " + quoted(id) + ", \"podname\": " + quoted(podName) + ", \"clustername\": "
        + quoted(clusterName) + ", \"reviews\": ["
        + review("Reviewer1", "Quick, silly and warm-hearted. I laughed out loud at the second act.", ratings)
        + ", "
        + review("Reviewer2", "Great fun, though it has none of the depth of his later plays.", ratings)
        + "]}";
  }

  private void handle(HttpExchange exchange) throws IOException {
    try (exchange) {
      exchange.getRequestBody().readAllBytes();
      String path = exchange.getRequestURI().getPath();
      Matcher match = REVIEWS_PATH.matcher(path == null ? "" : path);
      if ("/health".equals(path)) {
        send(exchange, 200, "{\"status\": \"Reviews is healthy\"}");
      } else if (match.matches()) {
        send(exchange, 200, reviews(match.group(1), exchange));
      } else {
        send(exchange, 404, "{\"error\": \"not found\"}");
      }
    } catch (InterruptedException stopped) {
      Thread.currentThread().interrupt();
    }
  }

  private void send(HttpExchange exchange, int status, String body) throws IOException {
    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
    exchange.getResponseHeaders().set("Content-Type", "application/json");
    boolean head = exchange.getRequestMethod().equals("HEAD");
    log(exchange, status);  // before the answer leaves: whoever has the answer finds the line
    exchange.sendResponseHeaders(status, head ? -1 : bytes.length);
    if (!head) {
      exchange.getResponseBody().write(bytes);
    }
  }

  private void log(HttpExchange exchange, int status) throws IOException {
    if (accessLog == null) {
      return;
    }
    InetSocketAddress remote = exchange.getRemoteAddress();
    String line = String.format(Locale.ROOT, "{\"time\": %.3f, \"method\": %s, \"path\": %s, \"status\": %d",
            System.currentTimeMillis() / 1000.0, quoted(exchange.getRequestMethod()),
            quoted(exchange.getRequestURI().toString()), status)
        + header(exchange, "end_user", "end-user") + header(exchange, "x_request_id", "x-request-id")
        + header(exchange, "traceparent", "traceparent") + header(exchange, "b3_traceid", "x-b3-traceid")
        + header(exchange, "b3_spanid", "x-b3-spanid") + header(exchange, "b3_sampled", "x-b3-sampled")
        + ", \"remote\": " + quoted(remote.getAddress().getHostAddress() + ":" + remote.getPort()) + "}\n";
    accessLog.write(line.getBytes(StandardCharsets.UTF_8));
  }

  private static String header(HttpExchange exchange, String key, String name) {
    String value = exchange.getRequestHeaders().getFirst(name);
    return ", " + quoted(key) + ": " + quoted(value == null ? "" : value);
  }

  public static void main(String[] args) throws IOException {
    // Without it an answer waits for the acknowledgement of its own head.
    System.setProperty("sun.net.httpserver.nodelay", "true");
    System.setProperty("sun.net.httpserver.idleInterval", "60");
    int port = args.length > 0 ? Integer.parseInt(args[0]) : 9080;
    ExecutorService threads = Executors.newCachedThreadPool();
    Reviews reviews = new Reviews(threads);
    // The wildcard address is :: with IPv4 mapped into it, or 0.0.0.0 where there is no IPv6.
    HttpServer server = HttpServer.create(new InetSocketAddress((InetAddress) null, port), 256);
    server.setExecutor(threads);
    server.createContext("/", reviews::handle);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      server.stop(1);
      Runtime.getRuntime().halt(0);
    }));
    server.start();
    System.out.println("reviews listens on port " + port);
  }
}
