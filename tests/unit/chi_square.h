/* Chi-square tests of drawn tokens. */
#ifndef LS_TESTS_CHI_SQUARE_H
#define LS_TESTS_CHI_SQUARE_H

/* Upper tail of the chi-square distribution with df degrees of freedom. */
double chi_square_p(double x, int df);

/* p of having seen each of n outcomes seen[i] times in `draws` draws with these probabilities. Outcomes that are expected
 * less than 5 times are taken together. Returns 0 if an outcome of probability 0 was seen. */
double draws_p(const int *seen, const double *probability, int n, int draws);

#endif
