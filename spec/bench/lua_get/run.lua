-- The Lua hit path beside lua-resty-lrucache (and its pureffi class), and
-- beside ngx.shared.DICT in an nginx without network: one run, one core.
--   moonstash spec/bench/lua_get/run.lua [SECONDS] [OPTION...]
-- in the source tree. SECONDS: of processor time that each process measures
-- (0.5). Options:
--   rounds=N         how often all is run (5)
--   only=TEXT        the rows whose name contains it (a Lua pattern)
--   near=NAME:VALUE,...  the fields of an alias, or settings, that raise the
--                    bounds of near copies so that 100,000 fit
--                    (near_entries:131072,near_bytes:67108864)
--   peers=DIR        where the peers are, or are unpacked to and stay. Else
--                    they are fetched into a folder that goes at the end
--   trace            no table: what the JIT compiler says of our loops. What
--                    must not be seen is "stitch", and anything at all under
--                    "measured"; in the warm-up, aborts that start anew are
--                    usual. Exits with 1 unless each was compiled to a loop
--
-- The peers are Debian packages, fetched and unpacked, never installed: that
-- would replace LuaJIT. Rows whose peer is not to be had are left out.
--
-- What is measured: ns of processor time per operation. Keys are strings made
-- before, drawn by Zipf's law with exponent 0.99 (equal for all; "with
-- eviction": all keys in turn); values 100-byte strings or a small table; TTLs
-- an hour. Every contender runs every case in processes of its own (worker.lua,
-- where the loops are), one per round; the contenders take turns. A figure is
-- the median of all rounds' windows; a ratio is the median of the rounds' own,
-- with the lowest and the highest behind it. Where there is not room for all,
-- ours has a byte bound that holds as many entries as the peer (10,000), and
-- nginx a zone that does. At 100,000 keys lrucache's row is its plain class.
--
-- The longest step of the garbage collector: of processor time, in processes of
-- their own that hold as much and get as above. "step": each step of whole
-- cycles by itself, the longest of the median cycle; "batch": 100 operations at
-- a time, the longest of 10,000, with the steps that it happens to take. Both
-- are medians of the rounds, as other programs make for single outliers.
-- "nothing" is what the bench itself holds.
local task = require "task"
local process = require "spec.support.process"

local CORE = "1"
local WORKER = "spec/bench/lua_get/worker.lua"
local SLACK = 120 -- seconds that a process may take
local PACKAGES = { "lua-resty-lrucache",
  "lua-resty-core nginx libnginx-mod-http-lua libnginx-mod-http-ndk libluajit2-5.1-2", "libpcre3" }
local ZONES = { evict = "2540k" } -- of nginx; it holds about 10,000 entries
local ZONE = "64m"

local ROWS = {
  { "10,000 keys, beside lua-resty-lrucache" },
  { "get, hit, a string", 1.0, "ours hit", "lrucache hit" },
  { "get, miss", 1.5, "ours miss", "lrucache miss" },
  { "get, hit, a table, copy = false", 1.0, "ours table", "lrucache table" },
  { "set of an existing key", 4.0, "ours set", "lrucache set" },
  { "100,000 keys, beside lua-resty-lrucache" },
  { "get, hit, default bounds", 3.0, "ours hit_large", "lrucache hit_large" },
  { "get, hit, near tier raised", 1.0, "ours near_large", "lrucache hit_large" },
  { "100,000 keys into 10,000 entries, beside its pureffi class" },
  { "set with eviction", 2.0, "ours evict", "pureffi evict" },
  { "get or set", 2.0, "ours get_or_set", "pureffi get_or_set" },
  { "by itself, 10,000 keys" },
  { "a small table, beside decode alone", nil, "ours copy", "decode copy" },
  { "cached, one argument, beside get", 3.0, "ours cached", "ours hit" },
  { "100,000 keys, beside ngx.shared.DICT" },
  { "get, hit", 0.4, "ours hit_large", "dict hit_large" },
  { "set of an existing key", 0.5, "ours set_large", "dict set_large" },
  { "set with eviction, 10,000 entries", 0.3, "ours evict", "dict evict" },
}
local COPY_BAR_NS, HITS_BAR, STEP_BAR_US = 400, 0.76, 1000
local STEPS = {
  { "ours, 100,000 strings", "ours gc", true },
  { "ours, 10,000 tables, copy = false", "ours gc_table", true },
  { "ours, 100,000, near tier raised", "ours gc_near" },
  { "lrucache, 100,000 strings", "lrucache gc" },
  { "pureffi, 100,000 strings", "pureffi gc" },
  { "nothing", "nothing gc" },
}

local seconds, rounds, only, peers, trace = 0.5, 5, "", nil, false
local near = "near=near_entries:131072,near_bytes:67108864"
for _, word in ipairs(arg) do
  local name, value = word:match "^(%w+)=(.+)$"
  if tonumber(word) then seconds = tonumber(word)
  elseif name == "rounds" then rounds = assert(tonumber(value), "rounds=N")
  elseif name == "only" then only = value
  elseif name == "near" then near = word
  elseif name == "peers" then peers = value
  elseif word == "trace" then trace = true
  else
    error("arguments: [SECONDS] [rounds=N] [only=TEXT] [near=NAME:VALUE,...] [peers=DIR] [trace]",
      0)
  end
end

-- ---- the peers -------------------------------------------------------------------

local scratch = process.directory {}

local function sh(script, ...)
  return process.run { program = "sh", "-c", script, "sh", timeout = SLACK, ... }
end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

-- Apt's sandbox warns that it may not write here; what counts is what is there.
local function fetch()
  peers = peers or scratch .. "/peers"
  peers = sh("mkdir -p \"$1\" && realpath \"$1\"", peers).out:match "^[^\n]+"
  for _, names in ipairs(PACKAGES) do
    if not exists(peers .. "/" .. names:match "%S+") then
      local got = sh([[cd "$1" && mkdir -p debs && cd debs && apt-get download -q $2 2>&1 &&
        for deb in *.deb; do dpkg -x "$deb" .. && rm "$deb" || exit; done;
        [ $? = 0 ] && touch "../${2%% *}"]], peers, names)
      if got.code ~= 0 then
        print(("(not to be had: %s: %s)"):format(names, got.out:match "E: [^\n]*" or "no apt-get?"))
      end
    end
  end
end

-- While it measures, nothing here runs: it takes longer than this sleep.
local function pinned(options)
  table.insert(options, 1, "-c")
  table.insert(options, 2, CORE)
  options.program, options.timeout = "taskset", SLACK
  local running = process.start(options)
  task.sleep(seconds)
  return running:wait()
end

local function moonstash(who, case, option)
  local resty = who == "lrucache" or who == "pureffi"
  return pinned { process.binary(), WORKER, who, case, tostring(seconds), option,
    env = { MOONSTASH_LOG = "error",
      LUA_PATH = resty and peers .. "/usr/share/lua/5.1/?.lua;;" or nil } }
end

local NGINX = [[
load_module $peers/usr/lib/nginx/modules/ndk_http_module.so;
load_module $peers/usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; master_process off;
pid $scratch/pid;
error_log stderr error;
events { worker_connections 16; }
http {
  access_log off;
  client_body_temp_path $scratch/body; proxy_temp_path $scratch/proxy;
  fastcgi_temp_path $scratch/fastcgi; uwsgi_temp_path $scratch/uwsgi;
  scgi_temp_path $scratch/scgi;
  lua_package_path "$peers/usr/share/lua/5.1/?.lua;$here/?.lua;;";
  lua_shared_dict bench $zone;
  init_worker_by_lua_block {
    local ok, err = pcall(assert(loadfile "$here/$worker"), "dict", "$case", "$seconds", "-")
    if not ok then io.stderr:write(err, "\n") end
    io.stdout:flush()
    os.exit(ok and 0 or 1)
  }
}
]]

-- Without a server block it listens nowhere, and without a master it is the
-- process that the worker runs in.
local function nginx(_, case)
  local values = { peers = peers, scratch = scratch, case = case, seconds = tostring(seconds),
    worker = WORKER, zone = ZONES[case] or ZONE, here = sh("pwd").out:match "^[^\n]+" }
  local file = assert(io.open(scratch .. "/nginx.conf", "w"))
  file:write((NGINX:gsub("%$(%l+)", values)))
  file:close()
  return pinned { peers .. "/usr/sbin/nginx", "-e", "stderr", "-p", scratch, "-c",
    scratch .. "/nginx.conf",
    env = { LD_LIBRARY_PATH = peers .. "/usr/lib/x86_64-linux-gnu" } }
end

-- ---- the rounds ------------------------------------------------------------------

local results = {} -- "who case" -> {left_out = why, [round] = {ns = {...}, hits = ...}}
local checksums = {}

local function median(values)
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

local function read(out)
  local found = { ns = {} }
  for name, value in out:gmatch "(%w[%w_]*)=([^\n]*)" do
    if name == "ns" then
      table.insert(found.ns, tonumber(value))
    else
      found[name] = tonumber(value) or value
    end
  end
  found.median = median(found.ns)
  return found
end

-- All contenders have had the same sequence, or nothing is comparable.
local function check_sequence(case, found)
  local kind = case == "evict" and case or (case:find "large" or case == "get_or_set"
    or case == "gc" or case == "gc_near") and "large" or "small"
  checksums[kind] = checksums[kind] or found.checksum
  assert(checksums[kind] == found.checksum, "the sequences differ: " .. case)
end

local function run(contender, option)
  local who, case = contender:match "^(%S+) (%S+)$"
  local all = results[contender] or {}
  results[contender] = all
  if all.left_out then return end
  local ok, result = pcall(who == "dict" and nginx or moonstash, who, case, option)
  if not ok or result.code ~= 0 then
    all.left_out = ok and result.err:match "[^\n]+" or tostring(result)
    return
  end
  local found = read(result.out)
  if found.left_out then
    all.left_out = found.left_out
    return
  end
  check_sequence(case, found)
  table.insert(all, found)
end

local function wanted(name) return name:find(only) ~= nil end

local function run_all()
  for _ = 1, rounds do
    local done = {}
    local function once(contender)
      if contender and not done[contender] then run(contender, near) end
      done[contender or ""] = true
    end
    for _, row in ipairs(ROWS) do
      if #row > 1 and wanted(row[1]) then
        once(row[3])
        once(row[4])
      end
    end
    for _, row in ipairs(STEPS) do
      if wanted(row[1]) then once(row[2]) end
    end
  end
end

-- ---- the table -------------------------------------------------------------------

-- The median of what each round says under a name.
local function figure(contender, name)
  local values = {}
  for _, found in ipairs(results[contender]) do values[#values + 1] = found[name] end
  return median(values)
end

local function ns(contender)
  local values = {}
  for _, found in ipairs(results[contender]) do
    for _, value in ipairs(found.ns) do values[#values + 1] = value end
  end
  return median(values)
end

local missed, met = 0, 0

local function verdict(value, bar, at_least)
  local good
  if at_least then good = value >= bar else good = value <= bar end
  if good then met = met + 1 else missed = missed + 1 end
  return good and "met" or "MISSED"
end

local function print_extras(ours, peer)
  local hits, theirs = figure(ours, "hits"), figure(peer, "hits")
  if hits then
    print(("    hit ratio %.4f beside %.4f; at least %.2f: %s"):format(hits, theirs, HITS_BAR,
      verdict(hits, HITS_BAR, true)))
  end
  local entries = figure(ours, "entries")
  if entries then
    print(("    entries held: %d beside %d"):format(entries, figure(peer, "entries")))
  end
end

local function print_row(name, bar, ours, peer)
  for _, each in ipairs { ours, peer } do
    if results[each].left_out then
      print(("  %-36s      n/a  %s: %s"):format(name, each,
        results[each].left_out:gsub("^moonstash: ", "")))
      return
    end
  end
  local ratios = {}
  for i, found in ipairs(results[ours]) do ratios[i] = found.median / results[peer][i].median end
  local ratio, text = median(ratios), ""
  if bar then text = ("<= %.1fx  %s"):format(bar, verdict(ratio, bar)) end
  if ours == "ours copy" then
    text = ("<= %d ns  %s"):format(COPY_BAR_NS, verdict(ns(ours), COPY_BAR_NS))
  end
  print(("  %-36s %8.1f %8.1f %6.2fx %-14s %s"):format(name, ns(ours), ns(peer), ratio,
    ("[%.2f..%.2f]"):format(ratios[1], ratios[#ratios]), text))
  print_extras(ours, peer)
end

local function print_table()
  print(("%-38s %8s %8s %7s %-14s %s"):format("ns per operation", "ours", "peer", "ratio",
    "[of rounds]", "bar"))
  local section
  for _, row in ipairs(ROWS) do
    if #row == 1 then
      section = row[1]
    elseif wanted(row[1]) then
      if section then print("\n" .. section) end
      section = nil
      print_row(unpack(row, 1, 4))
    end
  end
end

local function print_steps()
  local any = false
  for _, row in ipairs(STEPS) do any = any or wanted(row[1]) end
  if not any then return end
  print(("\n%-38s %8s %8s %8s %7s"):format("longest step of the collector, us", "step", "batch",
    "(usual)", "heap MB"))
  for _, row in ipairs(STEPS) do
    local name, contender, ours = unpack(row)
    if wanted(name) and results[contender].left_out then
      print(("  %-36s      n/a  %s"):format(name, results[contender].left_out))
    elseif wanted(name) then
      local step, batch = figure(contender, "step_us"), figure(contender, "batch_us")
      print(("  %-36s %8d %8d %8.1f %7.1f %s"):format(name, step, batch,
        figure(contender, "usual_us"), figure(contender, "heap_kb") / 1024,
        ours and ("<= %d us  %s"):format(STEP_BAR_US, verdict(math.max(step, batch), STEP_BAR_US))
          or ""))
    end
  end
end

-- ---- what the JIT compiler says -----------------------------------------------------

local function print_traces()
  local bad = false
  for _, case in ipairs { "hit", "miss", "table", "set", "copy", "cached", "hit_large" } do
    local result = moonstash("ours", case, "trace")
    print(("\n%s: %s ns"):format(case, result.out:match "ns=(%S+)" or result.err))
    for line in result.out:gmatch "trace=([^\n]*)" do print("  " .. line) end
    bad = bad or result.out:find "stitch" or not result.out:find "warm%-up:[^\n]*loop"
      or not result.out:find "measured: nothing new"
  end
  return bad
end

if trace then os.exit(print_traces() and 1 or 0) end
fetch()
run_all()
print_table()
print_steps()
print(("\n%d bars met, %d missed"):format(met, missed))
