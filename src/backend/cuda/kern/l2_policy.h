/*
 * How long L2 keeps what a load or a copy brings, as its operand: what createpolicy.fractional makes of all of an access
 * (libcu++'s access_property has the same value).
 */
#ifndef LS_BACKEND_CUDA_L2_POLICY_H
#define LS_BACKEND_CUDA_L2_POLICY_H

#define L2_EVICT_FIRST 0x12f0000000000000ULL

#endif
