// PID 1 of a guest that ends as soon as it has begun.
#include <sys/reboot.h>

int main(void) {
    return reboot(RB_AUTOBOOT);
}
