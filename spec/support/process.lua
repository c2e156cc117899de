-- Runs programs for specs, as a rule the very binary that runs the specs:
--
--   local process = require "spec.support.process"
--   local result = process.run { "-e", "print(1)", env = { CACHE_ENABLED = "0" } }
--   result.code (or result.signal, a number), result.out, result.err
--
-- The list is the command line. Fields beside it, all optional:
--   program  another program than moonstash, looked up in PATH
--   env      variables on top of ours; false takes one away. CACHE_*, LUA_*
--            and MOONSTASH_* are never inherited
--   cwd      where it runs
--   input    the text of its standard input (default: empty); true: a pipe
--            that the spec writes to
--   timeout  seconds after which it is killed and the spec fails (20)
--   slow     keep the warnings of slow slices in result.err: they are left out
--            else, for on a loaded machine any slice may be slow
--
-- process.start gives a running one: p:write, p:close_input, p:kill, p:out,
-- p:err, p:wait_for, p:wait. Output goes to files in memory, so that nobody
-- has to read while the program runs, and no program waits for a reader.
local ffi = require "ffi"
local bit = require "bit"
local task = require "task"

ffi.cdef [[
  int memfd_create(const char *name, unsigned flags);
  int pipe2(int *fds, int flags);
  int close(int fd);
  long read(int fd, void *buffer, size_t count);
  long write(int fd, const void *buffer, size_t count);
  long pread(int fd, void *buffer, size_t count, long offset);
  long lseek(int fd, long offset, int whence);
  long readlink(const char *path, char *buffer, size_t size);
  char *mkdtemp(char *template);
  char *strerror(int number);
  int kill(int pid, int signal);
  int waitpid(int pid, int *status, int options);
  int sigemptyset(void *set);
  int sigaddset(void *set, int signal);
  int posix_spawnp(int *pid, const char *file, const void *actions, const void *attributes,
    char *const *argv, char *const *envp);
  int posix_spawn_file_actions_init(void *actions);
  int posix_spawn_file_actions_destroy(void *actions);
  int posix_spawn_file_actions_adddup2(void *actions, int fd, int target);
  int posix_spawn_file_actions_addchdir_np(void *actions, const char *path);
  int posix_spawnattr_init(void *attributes);
  int posix_spawnattr_destroy(void *attributes);
  int posix_spawnattr_setflags(void *attributes, short flags);
  int posix_spawnattr_setsigdefault(void *attributes, const void *set);
  int posix_spawnattr_setsigmask(void *attributes, const void *set);
]]
-- busted keeps declarations; a second file may declare the same again.
pcall(ffi.cdef, "extern char **environ;")

local C = ffi.C
local O_CLOEXEC, MFD_CLOEXEC, WNOHANG = 0x80000, 1, 1
local SETSIGDEF, SETSIGMASK = 4, 8
local OPAQUE = 512 -- bytes; more than glibc's posix_spawn types and sigset_t take
local POLL = 0.002 -- seconds between two looks at a running program
local TIMEOUT = 20 -- seconds

local process = { SIGHUP = 1, SIGINT = 2, SIGKILL = 9, SIGPIPE = 13, SIGTERM = 15 }

local function check(result, what)
  if result < 0 then
    error(("%s: %s"):format(what, ffi.string(C.strerror(ffi.errno()))), 3)
  end
  return result
end

--- The path of the running binary.
function process.binary()
  local buffer = ffi.new("char[4096]")
  local n = check(C.readlink("/proc/self/exe", buffer, 4096), "readlink")
  return ffi.string(buffer, tonumber(n))
end

-- ---- what a program is started with ---------------------------------------

local function memory_file(text)
  local fd = check(C.memfd_create("spec", MFD_CLOEXEC), "memfd_create")
  if text and #text > 0 then
    check(C.write(fd, text, #text), "write")
    C.lseek(fd, 0, 0)
  end
  return fd
end

local function pipe()
  local fds = ffi.new("int[2]")
  check(C.pipe2(fds, O_CLOEXEC), "pipe2")
  return fds[0], fds[1]
end

local function is_ours(name)
  return name:find "^CACHE_" or name:find "^LUA_" or name:find "^MOONSTASH_"
end

local function environment(changes)
  local values, list = {}, {}
  local environ = C.environ
  local i = 0
  while environ[i] ~= nil do
    local name, value = ffi.string(environ[i]):match "^([^=]*)=(.*)$"
    if name and not is_ours(name) then values[name] = value end
    i = i + 1
  end
  for name, value in pairs(changes or {}) do values[name] = value end
  for name, value in pairs(values) do
    if value then list[#list + 1] = name .. "=" .. value end
  end
  return list
end

-- A NULL-ended char *[]; the strings live as long as the list does.
local function c_strings(list)
  local array = ffi.new("const char *[?]", #list + 1)
  for i, text in ipairs(list) do array[i - 1] = text end
  return ffi.cast("char *const *", array), array
end

-- Signals start as a shell in the foreground leaves them, however we run.
local function attributes()
  local attr, set = ffi.new("char[?]", OPAQUE), ffi.new("char[?]", OPAQUE)
  C.posix_spawnattr_init(attr)
  C.posix_spawnattr_setflags(attr, bit.bor(SETSIGDEF, SETSIGMASK))
  C.sigemptyset(set)
  C.posix_spawnattr_setsigmask(attr, set)
  for _, signal in ipairs { process.SIGHUP, process.SIGINT, process.SIGPIPE, process.SIGTERM } do
    C.sigaddset(set, signal)
  end
  C.posix_spawnattr_setsigdefault(attr, set)
  return attr
end

local function spawn(program, options, fds)
  local actions, attr = ffi.new("char[?]", OPAQUE), attributes()
  C.posix_spawn_file_actions_init(actions)
  for target = 0, 2 do
    C.posix_spawn_file_actions_adddup2(actions, fds[target], target)
  end
  if options.cwd then C.posix_spawn_file_actions_addchdir_np(actions, options.cwd) end
  local args = { program }
  for _, argument in ipairs(options) do args[#args + 1] = argument end
  local env = environment(options.env)
  local argv, argv_memory = c_strings(args)
  local envp, envp_memory = c_strings(env)
  local pid = ffi.new("int[1]")
  local rc = C.posix_spawnp(pid, program, actions, attr, argv, envp)
  C.posix_spawn_file_actions_destroy(actions)
  C.posix_spawnattr_destroy(attr)
  assert(argv_memory and envp_memory and #args > 0 and env)
  if rc ~= 0 then error(("cannot start %s: %s"):format(program, ffi.string(C.strerror(rc))), 3) end
  return pid[0]
end

-- ---- a running program -------------------------------------------------------

local Process = {}
Process.__index = Process

--- Writes to its standard input.
function Process:write(text)
  check(C.write(self.input, text, #text), "write")
end

function Process:close_input()
  if self.input then C.close(self.input) end
  self.input = nil
end

--- Sends a signal.
function Process:kill(signal)
  check(C.kill(self.pid, signal), "kill")
end

local function read_all(fd)
  local buffer, parts, offset = ffi.new("char[65536]"), {}, 0
  while true do
    local n = tonumber(check(C.pread(fd, buffer, 65536, offset), "pread"))
    if n == 0 then return table.concat(parts) end
    parts[#parts + 1] = ffi.string(buffer, n)
    offset = offset + n
  end
end

--- What it has written so far.
function Process:out() return self.result and self.result.out or read_all(self.out_fd) end
function Process:err() return self.result and self.result.err or read_all(self.err_fd) end

local function finish(self, status)
  local signal = bit.band(status, 0x7f)
  self:close_input()
  local result = {
    code = signal == 0 and bit.band(bit.rshift(status, 8), 0xff) or nil,
    signal = signal ~= 0 and signal or nil,
    out = read_all(self.out_fd),
    err = read_all(self.err_fd),
  }
  if not self.slow then
    result.err = result.err:gsub("moonstash: %l+: [^\n]* held the loop for [^\n]*\n", "")
  end
  C.close(self.out_fd)
  C.close(self.err_fd)
  self.result = result
  return result
end

--- Has it ended? Then its result.
function Process:poll()
  if self.result then return self.result end
  local status = ffi.new("int[1]")
  if C.waitpid(self.pid, status, WNOHANG) == self.pid then return finish(self, status[0]) end
end

local function reap(self)
  local status = ffi.new("int[1]")
  C.kill(self.pid, process.SIGKILL)
  C.waitpid(self.pid, status, 0)
  return finish(self, status[0])
end

--- Starts a program; see the top.
function process.start(options)
  local self = setmetatable({ timeout = options.timeout or TIMEOUT, slow = options.slow }, Process)
  local input
  if options.input == true then
    input, self.input = pipe()
  else
    input = memory_file(options.input)
  end
  self.out_fd, self.err_fd = memory_file(), memory_file()
  local fds = { [0] = input, self.out_fd, self.err_fd }
  local ok, pid = pcall(spawn, options.program or process.binary(), options, fds)
  C.close(input)
  if not ok then
    self:close_input()
    C.close(self.out_fd)
    C.close(self.err_fd)
    error(pid, 2)
  end
  self.pid = pid
  task.defer(function() -- no program outlives its spec
    if not self:poll() then reap(self) end
  end)
  return self
end

local function give_up(self, what)
  local result = reap(self)
  error(("%s\nstdout: %s\nstderr: %s"):format(what, result.out, result.err), 3)
end

-- Waits until done() is true; the other tasks run meanwhile.
local function await(self, done, what)
  local left = self.timeout
  while not done() do
    task.sleep(POLL)
    left = left - POLL
    if left <= 0 then give_up(self, what) end
  end
end

--- Waits until its output (stream "out" or "err") contains the text.
function Process:wait_for(text, stream)
  stream = stream or "out"
  await(self, function()
    local ended = self:poll()
    local found = self[stream](self):find(text, 1, true)
    if ended and not found then
      error(("it ended (code %s, signal %s) without '%s'\nstdout: %s\nstderr: %s"):format(
        ended.code, ended.signal, text, ended.out, ended.err), 0)
    end
    return found
  end, ("no '%s' in its std%s"):format(text, stream))
end

--- Waits for its end; gives the result.
function Process:wait()
  await(self, function() return self:poll() end, "it does not end")
  return self.result
end

--- Starts a program and waits for its end.
function process.run(options)
  return process.start(options):wait()
end

-- ---- files and programs around it ----------------------------------------

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- A fresh directory with these files (relative path = text); it goes when the
--- test has ended, or the run, if a setup made it.
function process.directory(files)
  local template = (os.getenv "TMPDIR" or "/tmp") .. "/moonstash-spec-XXXXXX"
  local buffer = ffi.new("char[?]", #template + 1, template)
  if C.mkdtemp(buffer) == nil then error("cannot make " .. template, 2) end
  local path = ffi.string(buffer)
  task.defer(os.execute, "rm -rf " .. quoted(path))
  for name, text in pairs(files or {}) do
    local folder = name:match "^(.*)/"
    if folder then os.execute("mkdir -p " .. quoted(path .. "/" .. folder)) end
    local file = assert(io.open(path .. "/" .. name, "wb"))
    file:write(text)
    file:close()
  end
  return path
end

--- Is there a program of that name?
function process.has(program)
  return os.execute("command -v " .. quoted(program) .. " >/dev/null 2>&1") == 0
end

--- Must specs that need `what` run (MOONSTASH_REQUIRE=pty,redis)? Else they
--- are skipped by name.
function process.required(what)
  return ((os.getenv "MOONSTASH_REQUIRE" or "") .. ","):find(what .. ",", 1, true) ~= nil
end

return process
