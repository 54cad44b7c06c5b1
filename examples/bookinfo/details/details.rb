#!/usr/bin/ruby
# BookInfo's details: what is printed on the back of the book.
# Ruby's standard library and WEBrick. Paths, JSON and texts follow the contract in ../README.md.

require 'json'
require 'webrick'

class AccessLog
  def initialize(path)
    @file = path && !path.empty? ? File.open(path, File::WRONLY | File::APPEND | File::CREAT, 0o644) : nil
  end

  def write(request, status)
    return unless @file

    _, port, _, address = request.peeraddr
    line = { time: Time.now.to_f, method: request.request_method, path: request.unparsed_uri, status: status,
             end_user: request['end-user'] || '', x_request_id: request['x-request-id'] || '',
             traceparent: request['traceparent'] || '', b3_traceid: request['x-b3-traceid'] || '',
             b3_spanid: request['x-b3-spanid'] || '', b3_sampled: request['x-b3-sampled'] || '',
             remote: "#{address.delete_prefix('::ffff:')}:#{port}" }
    @file.syswrite("#{JSON.generate(line)}\n")
  end
end

ACCESS = AccessLog.new(ENV['ACCESS_LOG'])

def book(id)
  { 'id' => id, 'author' => 'William Shakespeare', 'year' => 1595, 'type' => 'paperback', 'pages' => 200,
    'publisher' => 'PublisherA', 'language' => 'English', 'ISBN-10' => '1234567890',
    'ISBN-13' => '123-1234567890' }
end

# Answers [status, object] for a path.
def answer_for(path)
  case path
  when '/health' then [200, { 'status' => 'Details is healthy' }]
  when %r{\A/details/(\d{1,9})\z} then [200, book(Regexp.last_match(1).to_i)]
  when %r{\A/details(/|\z)} then [400, { 'error' => 'please provide numeric product id' }]
  else [404, { 'error' => 'not found' }]
  end
end

# The HTTP server with one way to answer, whatever the path.
class Details < WEBrick::HTTPServer
  # Without it the body, which WEBrick writes by itself, waits for the acknowledgement of its head.
  def accept_client(listener)
    client = super
    client&.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
    client
  end

  def service(request, response)
    status, value = %w[GET HEAD].include?(request.request_method) ? answer_for(request.path) : [405, { 'error' => 'GET' }]
    response.status = status
    response['Content-Type'] = 'application/json'
    response.body = request.request_method == 'HEAD' ? '' : JSON.generate(value)
    ACCESS.write(request, status)
  end
end

port = (ARGV[0] || 9080).to_i
quiet = WEBrick::Log.new($stderr, WEBrick::Log::WARN)
server = Details.new(Port: port, BindAddress: '*', Logger: quiet, AccessLog: [], DoNotReverseLookup: true,
                     RequestTimeout: 60, MaxClients: 512, ServerSoftware: 'details')
%w[TERM INT].each { |name| trap(name) { server.shutdown } }
puts "details listens on port #{port}"
$stdout.flush
server.start
