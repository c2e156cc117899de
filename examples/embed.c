/* A host with a loop of its own, as a game server has: it simulates the world
 * in fixed frames and gives Lua two milliseconds of each.
 *
 *   cc embed.c -o embed $(pkg-config --cflags --libs moonstash luajit)
 *   ./embed [script.lua [args...]]
 */
#include <lua.h>
#include <lauxlib.h>
#include <moonstash.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { FRAME_US = 10000, LUA_BUDGET_US = 2000, DRAIN_MS = 1000 };

static const char script[] =
    "local cache, task = require 'cache', require 'task'\n"
    "local path_cost = cache.cached(function(from, to)\n"
    "  task.sleep(0.02) -- as if a pathfinder had to think\n"
    "  return math.abs(from - to)\n"
    "end, {ttl = 60, name = 'path_cost'})\n"
    "\n"
    "for id = 1, 4 do\n"
    "  task.spawn(function() -- one task per unit; it waits, the game does "
    "not\n"
    "    for goal = 10, 30, 10 do\n"
    "      local cost = path_cost(id % 2, goal)\n"
    "      print(('frame %2d: unit %d to %d costs %d'):format(\n"
    "        world_frame(), id, goal, cost))\n"
    "      task.sleep(0.05)\n"
    "    end\n"
    "  end)\n"
    "end\n";

struct world {
  int frame;
};

/* world_frame() for Lua: the number of the frame we are in. */
static int l_world_frame(lua_State *L) {
  const struct world *world = lua_touserdata(L, lua_upvalueindex(1));
  lua_pushinteger(L, world->frame);
  return 1;
}

static void on_log(void *ud, int level, const char *line) {
  (void)ud;
  (void)level;
  fprintf(stderr, "[moonstash] %s\n", line);
}

static void on_error(void *ud, const char *task, const char *trace) {
  (void)ud;
  fprintf(stderr, "[moonstash] %s: %s\n", task, trace);
}

static long long now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void sleep_us(long long us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  if (us > 0)
    nanosleep(&t, NULL);
}

static int start(moonstash *m, int argc, const char *const *argv) {
  if (argc > 1)
    return moonstash_run_file(m, argv[1], argc - 2, argv + 2);
  return moonstash_run_buffer(m, script, strlen(script), "=built-in");
}

/* The frames, until all scripts have ended. 0, or what moonstash_poll says. */
static int run_frames(moonstash *m, struct world *world) {
  long long in_lua = 0, longest = 0;
  int more;
  do {
    long long began = now_us();
    world->frame++; /* here the world would move */
    more = moonstash_poll(m, LUA_BUDGET_US);
    long long took = now_us() - began;
    in_lua += took;
    if (took > longest)
      longest = took;
    sleep_us(began + FRAME_US - now_us());
  } while (more > 0);
  printf("%d frames; in Lua %.2f ms per frame, at most %.2f ms\n", world->frame,
         in_lua / 1000.0 / world->frame, longest / 1000.0);
  return more;
}

int main(int argc, char **argv) {
  struct world world = {0};
  moonstash *m;
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.log_fn = on_log;
  options.error_fn = on_error;
  if (moonstash_open(&m, &options) < 0)
    return 1; /* on_log has told why */

  lua_State *L = moonstash_lua(m);
  lua_pushlightuserdata(L, &world);
  lua_pushcclosure(L, l_world_frame, 1);
  lua_setglobal(L, "world_frame");

  int code = start(m, argc, (const char *const *)argv);
  if (code == 0)
    code = run_frames(m, &world);
  if (code == 0)
    code = moonstash_run(m); /* all have ended: gives the exit code */
  if (code < 0)
    fprintf(stderr, "%s: %s\n", moonstash_strerror(code),
            moonstash_last_error(m));
  moonstash_close(m, DRAIN_MS);
  return code < 0 ? 1 : code;
}
