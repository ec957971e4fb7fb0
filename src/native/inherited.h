#ifndef SHOAL_INHERITED_H
#define SHOAL_INHERITED_H

#include <stddef.h>

#define INHERITED_BYTES 8192

size_t inherited(char *buffer, size_t size); /* how many bytes it wrote */

#endif
