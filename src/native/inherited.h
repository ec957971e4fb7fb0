#ifndef SHOAL_INHERITED_H
#define SHOAL_INHERITED_H

#include <stddef.h>

#define INHERITED_BYTES 8192

size_t inherited(char *buffer, size_t size); /* how many bytes it wrote */

/* Of that, what threads of one process may differ in, and their network, which a program in the caller's world gets. Of several
 * filters it is seen only that there are any. */
size_t inherited_by_thread(char *buffer, size_t size);

#endif
