/* What the command line needs beyond moonstash.h. */
#ifndef MOONSTASH_HOST_RUNTIME_H
#define MOONSTASH_HOST_RUNTIME_H

#include "bind/bind.h"
#include "moonstash.h"

/* Starts the main task of the command line. */
int runtime_run_cli(moonstash *m, const struct bind_cli *cli);
/* Signal-safe: cancels the main tasks in the loop's next turn. */
void runtime_interrupt(moonstash *m, int signo);
/* Cancels what is left and runs until it has ended, at most drain_ms. */
void runtime_drain(moonstash *m, unsigned drain_ms);
/* Writes the settings that a runtime with these options would have, one line
 * each, to write(). Returns 0, or EINVAL when it would not open with them; the
 * reason went to log_fn. */
int runtime_show_settings(const moonstash_options *options,
                          void (*write)(void *ud, const char *line), void *ud);

#endif
