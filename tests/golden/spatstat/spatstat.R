# Golden values of spatstat: reads points.json, writes spatstat.json beside it.
#
#   Rscript tests/golden/spatstat/spatstat.R tests/golden/spatstat
#
# Debian: r-base-core, r-cran-spatstat, r-cran-jsonlite. Tests need no R.
suppressPackageStartupMessages({library(spatstat); library(jsonlite)})
folder <- commandArgs(TRUE)[1]
cases <- fromJSON(file.path(folder, "points.json"), simplifyVector = FALSE)
r <- c(0, 4.37 * (1:16))
h <- 9.0
num <- function(x) as.numeric(unlist(x))

# Overlaps of polygons instead of spatstat's default raster.
exact <- function(i, j, X, Y, W)
  edge.Trans(X[i], Y[j], W = W, exact = TRUE, paired = TRUE)

one <- function(case) {
  rings <- lapply(case$rings, function(p) list(x = num(p$x), y = num(p$y)))
  W <- owin(poly = rings)
  xy <- do.call(rbind, lapply(case$points, num))
  X <- ppp(xy[, 1], xy[, 2], window = W)
  stopifnot(npoints(X) == nrow(xy))
  types <- factor(num(case$types))
  M <- X; marks(M) <- types
  A <- area(W); n <- npoints(X)
  K <- Kest(X, r = r, correction = c("none", "isotropic"))
  close <- closepairs(X, max(r) + h)
  w <- exact(close$i, close$j, X, X, W)
  near <- close$d <= max(r)
  breaks <- handle.r.b.args(r, NULL, W)
  Kt <- cumsum(c(sapply(seq_along(r), function(k)
    sum(w[close$d <= r[k] & (k == 1 | close$d > r[max(k - 1, 1)])]))))
  Kt <- A / (n * (n - 1)) * Kt
  # The exact kernel sum; density.default, which pcf uses, bins distances.
  pair <- function(w) sapply(r, function(s) {
    u <- (s - close$d) / h
    sum(ifelse(abs(u) < 1, 0.75 / h * (1 - u^2), 0) * w / close$d)
  }) * A / (2 * pi * n * (n - 1))
  wi <- edge.Ripley(X[close$i], matrix(close$d, ncol = 1))
  fine <- pcf(X, r = seq(0, max(r), length.out = 513), kernel = "epanechnikov",
              bw = h / sqrt(5), divisor = "d", correction = "Ripley")
  C <- Kcross(M, "0", "1", r = r, correction = c("none", "isotropic"))
  P <- M[types == "0"]; Q <- M[types == "1"]
  cross <- crosspairs(unmark(P), unmark(Q), max(r))
  wc <- exact(cross$i, cross$j, unmark(P), unmark(Q), W)
  Ct <- sapply(r, function(s) sum(wc[cross$d <= s])) * A / (npoints(P) * npoints(Q))
  # Steps so fine that a step holds one distance: the product-limit estimate,
  # and border methods that ask no point about a radius beyond its border.
  steps <- seq(0, max(r), length.out = 2 * 10^5 + 1)
  at <- function(f, name) approx(steps, f[[name]], r, method = "constant")$y
  G <- Gest(X, r = steps, correction = c("rs", "km"))
  GC <- Gcross(M, "0", "1", r = steps, correction = c("rs", "km"))
  lambda <- seq(1, 2, length.out = n) * n / A
  Ki <- Kinhom(X, lambda, r = r, correction = "isotropic", normpower = 2)
  KB <- at(Kest(X, r = steps, correction = "border"), "border")
  CB <- at(Kcross(M, "0", "1", r = steps, correction = "border"), "border")
  IB <- at(Kinhom(X, lambda, r = steps, correction = "border",
                  normpower = 2), "border")
  list(area = A, border = bdist.points(X),
       k = list(none = K$un, border = KB, isotropic = K$iso,
                translation = Kt),
       l = list(isotropic = Lest(X, r = r, correction = "isotropic")$iso),
       pcf = list(isotropic = pair(wi), translation = pair(w)),
       pcf_binned = approx(fine$r, fine$iso, r)$y,
       cross_k = list(none = C$un, border = CB, isotropic = C$iso,
                      translation = Ct),
       g = list(border = at(G, "rs"), `kaplan-meier` = at(G, "km")),
       cross_g = list(border = at(GC, "rs"), `kaplan-meier` = at(GC, "km")),
       inhomogeneous_k = list(border = IB, isotropic = Ki$iso))
}
found <- list(version = as.character(packageVersion("spatstat.explore")),
              radii = r, bandwidth = h, cases = lapply(cases, one))
write(toJSON(found, digits = NA, auto_unbox = TRUE, na = "null"),
      file.path(folder, "spatstat.json"))
