-- What bench/wrk.py has wrk do: wrk -s load.lua URL -- METHOD FILE ORDER
-- GET: the lines of FILE are paths. POST: they are bodies of JSON, sent to the URL's own path.
-- ORDER: "random" (always the same one), or "walk" for one after the other, again from the first behind the last.

function init(args)
  local method, file = args[1], args[2]
  requests = {}
  wrk.headers["Content-Type"] = method == "POST" and "application/json" or nil
  for line in io.lines(file) do
    if method == "POST" then
      requests[#requests + 1] = wrk.format("POST", wrk.path, nil, line)
    else
      requests[#requests + 1] = wrk.format("GET", line)
    end
  end
  random = args[3] == "random"
  at = 0
  math.randomseed(1)
end

function request()
  if random then
    return requests[math.random(#requests)]
  end
  at = at % #requests + 1
  return requests[at]
end

-- The last line that wrk prints. wrk counts what is answered with 400 or more as errors.status.
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
