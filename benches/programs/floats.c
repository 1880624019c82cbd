// Floating-point work: the planets of the outer solar system move on by symplectic steps (doubles: multiply, add,
// divide, square root).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct body {
    double x[3], v[3], mass;
};

#define N 5
#define YEAR 365.24
#define SUN (4 * M_PI * M_PI)

static struct body bodies[N] = {
    {{0, 0, 0}, {0, 0, 0}, SUN},
    {{4.84, -1.16, -0.103}, {0.00166 * YEAR, 0.0077 * YEAR, -0.000069 * YEAR}, 0.000954 * SUN},
    {{8.34, 4.12, -0.403}, {-0.00277 * YEAR, 0.005 * YEAR, 0.000023 * YEAR}, 0.000286 * SUN},
    {{12.89, -15.11, -0.223}, {0.00296 * YEAR, 0.00238 * YEAR, -0.0000296 * YEAR}, 0.0000437 * SUN},
    {{15.38, -25.92, 0.179}, {0.00268 * YEAR, 0.00163 * YEAR, -0.000095 * YEAR}, 0.0000515 * SUN},
};

static void step(double dt) {
    for (int i = 0; i < N; i++)
        for (int j = i + 1; j < N; j++) {
            double d[3], square = 0;
            for (int k = 0; k < 3; k++) d[k] = bodies[i].x[k] - bodies[j].x[k], square += d[k] * d[k];
            double pull = dt / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                bodies[i].v[k] -= d[k] * bodies[j].mass * pull;
                bodies[j].v[k] += d[k] * bodies[i].mass * pull;
            }
        }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 3; k++) bodies[i].x[k] += dt * bodies[i].v[k];
}

int main(int argc, char **argv) {
    for (int n = argc > 1 ? atoi(argv[1]) : 1000; n > 0; n--) step(0.01);
    printf("%.17g\n", bodies[0].x[0]);
}
