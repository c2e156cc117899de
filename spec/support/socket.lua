-- A client's socket for specs: bytes out, bytes in, and what each recv gave.
--
--   local s = socket.connect(6379)          -- 127.0.0.1; or the path of a unix socket
--   s:send "PING\r\n"
--   s:read()         -- what one recv gives; nil at the peer's FIN; nil, message
--   s:receive(7)     -- exactly 7 bytes, or what came before the end
--   s:rest()         -- all until the peer closes; and the message, if it is an error
--   s:close()        -- done anyway when the test has ended
--
-- Waits are sleeps of a task: other tasks run meanwhile. Connecting is not
-- waited for: on one machine the kernel does that alone.
local bit = require "bit"
local ffi = require "ffi"
local task = require "task"

ffi.cdef [[
  int socket(int domain, int type, int protocol);
  int connect(int fd, const void *address, unsigned size);
  int bind(int fd, const void *address, unsigned size);
  long send(int fd, const void *data, size_t size, int flags);
  long recv(int fd, void *buffer, size_t size, int flags);
  int close(int fd);
  int getpid(void);
  char *strerror(int number);
]]

local C = ffi.C
local AF_UNIX, AF_INET = 1, 2
local SOCK_STREAM, SOCK_CLOEXEC = 1, 0x80000
local MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
local EINTR, EAGAIN = 4, 11
local POLL = 0.0005 -- seconds between two looks
local TIMEOUT = 20 -- seconds
local BUFFER = 65536 -- bytes
-- Free ports are looked for below those that connections get by themselves, and
-- so that a cluster's bus (port + 10000) is there as well.
local FIRST_PORT, PORTS = 11000, 11000

local socket = {}
local Socket = {}
Socket.__index = Socket

local function port_address(port)
  local address = ffi.new("uint8_t[16]")
  ffi.cast("uint16_t *", address)[0] = AF_INET
  address[2], address[3] = bit.rshift(port, 8), bit.band(port, 0xff)
  address[4], address[7] = 127, 1
  return address, 16
end

local function path_address(path)
  local address = ffi.new("uint8_t[110]")
  if #path > 107 then error("a unix socket's path has at most 107 bytes: " .. path, 3) end
  ffi.cast("uint16_t *", address)[0] = AF_UNIX
  ffi.copy(address + 2, path)
  return address, 110
end

local function last_error() return ffi.string(C.strerror(ffi.errno())) end

local function open(family)
  return C.socket(family, bit.bor(SOCK_STREAM, SOCK_CLOEXEC), 0)
end

--- Connects to a port of 127.0.0.1 or to a path; nil, message if it cannot.
function socket.connect(to)
  local is_path = type(to) == "string"
  local fd = open(is_path and AF_UNIX or AF_INET)
  local address, size = (is_path and path_address or port_address)(to)
  if C.connect(fd, address, size) < 0 then
    local message = last_error()
    C.close(fd)
    return nil, message
  end
  local self = setmetatable({ fd = fd, ahead = "" }, Socket)
  task.defer(self.close, self)
  return self
end

local next_port

--- A port that nobody listens on now. It may be taken the next moment.
function socket.free_port()
  next_port = next_port or C.getpid() * 37 % PORTS
  for _ = 1, PORTS do
    next_port = (next_port + 1) % PORTS
    local fd = open(AF_INET)
    local address, size = port_address(FIRST_PORT + next_port)
    local free = C.bind(fd, address, size) == 0
    C.close(fd)
    if free then return FIRST_PORT + next_port end
  end
  error("no port is free", 2)
end

-- Calls step() until it does not want to wait; gives its result, or nil and a
-- message.
local function await(step)
  local left = TIMEOUT
  while true do
    local n = tonumber(step())
    if n >= 0 then return n end
    local errno = ffi.errno()
    if errno ~= EAGAIN and errno ~= EINTR then return nil, last_error() end
    if left <= 0 then error("the peer neither sends nor reads nor closes", 3) end
    task.sleep(POLL)
    left = left - POLL
  end
end

--- Sends it all: true, or nil and a message.
function Socket:send(bytes)
  local data, sent = ffi.cast("const char *", bytes), 0
  while sent < #bytes do
    local n, message = await(function()
      return C.send(self.fd, data + sent, #bytes - sent, bit.bor(MSG_DONTWAIT, MSG_NOSIGNAL))
    end)
    if not n then return nil, message end
    sent = sent + n
  end
  return true
end

--- What one recv gives; nil at the end, with a message when it is no FIN.
function Socket:read()
  if self.ahead ~= "" then
    local bytes = self.ahead
    self.ahead = ""
    return bytes
  end
  local buffer = ffi.new("char[?]", BUFFER)
  local n, message = await(function()
    return C.recv(self.fd, buffer, BUFFER, MSG_DONTWAIT)
  end)
  if not n or n == 0 then return nil, message end
  return ffi.string(buffer, n)
end

--- n bytes, fewer only when the stream ends before.
function Socket:receive(n)
  local parts, size = {}, 0
  while size < n do
    local bytes, message = self:read()
    if not bytes then return table.concat(parts), message or "closed" end
    if size + #bytes > n then
      self.ahead = bytes:sub(n - size + 1)
      bytes = bytes:sub(1, n - size)
    end
    parts[#parts + 1] = bytes
    size = size + #bytes
  end
  return table.concat(parts)
end

--- All that comes until the end.
function Socket:rest()
  local bytes, message = self:receive(math.huge)
  return bytes, message ~= "closed" and message or nil
end

function Socket:close()
  if self.fd then C.close(self.fd) end
  self.fd = nil
end

return socket
