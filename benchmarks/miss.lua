-- wrk: no two requests alike.   wrk -t1 ... -s miss.lua URL -- BODY_FILE JSON_BYTES
-- The first value of the input is a counter (24 bits, as in scenarios.py: always a finite float);
-- the second value, different for each run, is in the file already.
local head, tail
local serial = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  local json_bytes = tonumber(args[2])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/octet-stream"
  wrk.headers["Inference-Header-Content-Length"] = args[2]
  wrk.body = body
  local request = wrk.format()
  local start = #request - #body + json_bytes
  head, tail = request:sub(1, start), request:sub(start + 5)
end

function request()
  serial = serial + 1
  return head .. string.char(serial % 256, math.floor(serial / 256) % 256, math.floor(serial / 65536) % 256, 0x3f)
    .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"bytes":%d,"p50":%d,"p99":%d,"connect":%d,"read":%d,"write":%d,' ..
    '"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
