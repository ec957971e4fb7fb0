#ifndef SHOAL_INIT_WAIT_H
#define SHOAL_INIT_WAIT_H

void wait_for_plan(void); /* returns when there is nothing left to wait for */

#endif
