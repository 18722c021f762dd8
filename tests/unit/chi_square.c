/* See chi_square.h. */
#include "chi_square.h"

#include <math.h>

/* Q(df / 2, x / 2), by the series of the lower tail or a continued fraction (Lentz). */
double chi_square_p(double x, int df) {
    const double a = df / 2.0, y = x / 2, scale = exp(-y + a * log(y) - lgamma(a));
    if (y < a + 1) {
        double term = 1 / a, sum = term;
        for (int n = 1; n < 1000; n++) {
            term *= y / (a + n);
            sum += term;
        }
        return 1 - sum * scale;
    }
    double b = y + 1 - a, c = 1e300, d = 1 / b, h = d;
    for (int i = 1; i < 1000; i++) {
        double an = -i * (i - a);
        b += 2;
        d = 1 / (an * d + b);
        c = b + an / c;
        h *= d * c;
    }
    return scale * h;
}

double draws_p(const int *seen, const double *probability, int n, int draws) {
    double chi = 0, rare_expected = 0;
    int n_bins = 0, rare_seen = 0;
    for (int i = 0; i < n; i++) {
        double expected = draws * probability[i];
        if (probability[i] == 0 && seen[i] > 0) {
            return 0;
        }
        if (expected >= 5) {
            chi += (seen[i] - expected) * (seen[i] - expected) / expected;
            n_bins++;
        } else {
            rare_expected += expected;
            rare_seen += seen[i];
        }
    }
    if (rare_expected >= 1) {
        chi += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
        n_bins++;
    }
    return n_bins < 2 ? 1 : chi_square_p(chi, n_bins - 1);
}
