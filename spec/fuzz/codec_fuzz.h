/* Between the fuzz targets and the driver that replays their corpus. */
#ifndef MOONSTASH_SPEC_CODEC_FUZZ_H
#define MOONSTASH_SPEC_CODEC_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* The check with all allocations failing after the first `after`: was one of
 * them needed? Call LLVMFuzzerTestOneInput first. */
int fuzz_with_failure(const uint8_t *data, size_t size, long after);

#endif
