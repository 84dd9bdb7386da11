-- wrk: the whole request of a file, again and again.   wrk ... -s wrk.lua URL -- REQUEST_FILE [LENGTH]
-- With LENGTH, each answer's status and length are looked at: all that can be looked at cheaply.
local text, length
local wrong = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  text = file:read("*a")
  file:close()
  length = tonumber(args[2])
  if length then
    response = function(status, _, body)
      if status ~= 200 or #body ~= length then wrong = wrong + 1 end
    end
  end
end

function request()
  return text
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('WRK {"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"errors":%d}\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
